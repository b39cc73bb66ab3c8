"""What should not change between two updates: weights, the optimizer's moments, shards and master copies of them. The
sums of their bits are taken after each update and compared before the next one.

Sums and comparisons stay on the device. What they have found is read at verified steps and before a checkpoint is
committed, so that no step waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from raytrain_nlp.distributed.bit_sums import bit_sums

Tensors = dict[str, torch.Tensor]


class Resting:
    """The sums of tensors that rest, and where one has changed.

    Its tensors may lie on several devices: an optimizer that is offloaded, or counts its steps on the CPU.
    """

    def __init__(self) -> None:
        self._names: dict[torch.device, list[str]] = {}
        self._sums: dict[torch.device, torch.Tensor] = {}
        self._changed: dict[torch.device, torch.Tensor] = {}
        """Of each tensor: the step in which it has changed, counted from 1; 0: in none. int64, shape [tensors]."""

    @property
    def taken(self) -> bool:
        """Are there sums to compare with?"""
        return bool(self._sums)

    def take(self, tensors: Tensors) -> None:
        """The tensors are as they should be."""
        found = _by_device(tensors)
        self._sums = {device: bit_sums(part.values(), device) for device, part in found.items()}
        for device, part in found.items():
            if self._names.get(device) != list(part):  # the first update makes the moments
                self._names[device] = list(part)
                self._changed[device] = torch.zeros(len(part), dtype=torch.int64, device=device)

    def compare(self, tensors: Tensors, step: int) -> None:
        """Note what has changed since `take`, as of this step."""
        for device, part in _by_device(tensors).items():
            places = [place for place, name in enumerate(self._names.get(device, ())) if name in part]
            if not places:
                continue
            names, sums, changed = self._names[device], self._sums[device], self._changed[device]
            now = bit_sums((part[names[place]] for place in places), device)
            if len(places) < len(names):  # a weight that is gathered when it is first used
                found = torch.tensor(places, device=device)
                now = sums.index_copy(0, found, now)
            changed.masked_fill_((now != sums) & (changed == 0), step)

    def read(self) -> dict[str, int]:
        """Name -> step of what has changed. Waits for the device."""
        return {
            name: step
            for device, changed in self._changed.items()
            for name, step in zip(self._names[device], changed.tolist(), strict=True)
            if step
        }

    def sums(self) -> dict[str, int]:
        """Name -> sum of each tensor as it was taken. Waits for the device."""
        return {
            name: value
            for device, sums in self._sums.items()
            for name, value in zip(self._names[device], sums.tolist(), strict=True)
        }


def _by_device(tensors: Tensors) -> dict[torch.device, Tensors]:
    found: dict[torch.device, Tensors] = {}
    for name, tensor in tensors.items():
        found.setdefault(tensor.device, {})[name] = tensor
    return found


def learned_state(model: torch.nn.Module, optimizer: Any) -> Tensors:
    """What an update changes, by name: trained weights, and the optimizer's moments and master copies.

    Args:
        optimizer: torch's own, or one that wraps it, as those of accelerate and DeepSpeed do.
    """
    found = learned_weights(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate({id(one): one for one in [*groups, *optimizer.state]}.values()):
        name = names.get(id(parameter), f"part {number} of the optimizer")
        if id(parameter) not in names and parameter.numel():
            found[f"master weights, {name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.numel():
                found[f"{key} of {name}"] = value
    return found


def learned_weights(model: torch.nn.Module) -> Tensors:
    """Trained weights, by name."""
    return dict(_weights(model, trained=True))


def frozen_weights(model: torch.nn.Module) -> Tensors:
    """Weights that no update changes, by name."""
    return dict(_weights(model, trained=False))


def _weights(model: torch.nn.Module, trained: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != trained:
            continue
        shard = getattr(parameter, "ds_tensor", None)  # this rank's under ZeRO-3
        if shard is not None and shard.numel():
            yield f"shard of {name}", shard.detach()
        if parameter.numel() and (shard is None or parameter.ds_persist):  # under ZeRO-3 those that stay gathered
            yield name, parameter.detach()
