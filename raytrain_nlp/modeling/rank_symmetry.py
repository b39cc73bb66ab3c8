"""Makes every rank run the same modules of a model in each step: under ZeRO, gathering a module's weights and reducing
its gradients are collectives, in which every rank must take part.

Two things break this. With layerdrop (Fan et al. 2020) each rank draws for itself which layers a forward skips; here
all ranks draw the same, from seed and step. Experts in a list run only where a token is routed to them; here they are
gathered together (DeepSpeed's "leaf" modules), and experts without a token get a gradient of zero. Otherwise a rank
that gathers a layer which the others skip would hang; with ZeRO 1 and 2 gradients of different layers would be added.
"""

from __future__ import annotations

import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_DRAWS = re.compile(r"layer_?drop", re.I)
_EXPERTS = re.compile(r"expert", re.I)
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)


class SharedDraws:
    """Layerdrop that is equal on all ranks: new in each forward of each step, and the same again after a resume."""

    def __init__(self, seed: int):
        self._seed, self._step = seed, 0
        self._forwards: dict[int, int] = {}
        """Of each module, in this step."""
        self.modules: list[str] = []
        """Names of the modules that draw."""

    def apply(self, model: Any) -> None:
        """Let the modules of a model that draw which layers run do so with these draws."""
        for name, module in model.named_modules():
            if _drops_layers(module):
                module.forward = self._wrapped(module.forward, module, len(self.modules))
                self.modules.append(name)

    def begin(self, step: int) -> None:
        """A step begins, after `step` updates."""
        self._step, self._forwards = step, {}

    @property
    def position(self) -> dict[int, int]:
        """Where the draws of this step stand, for `go_to`."""
        return dict(self._forwards)

    def go_to(self, position: dict[int, int]) -> None:
        """The next forwards draw what was drawn from this position on."""
        self._forwards = dict(position)

    def _wrapped(self, forward: Callable[..., Any], module: Any, number: int) -> Callable[..., Any]:
        @functools.wraps(forward)
        def alike(*args: Any, **kwargs: Any) -> Any:
            if not module.training:
                return forward(*args, **kwargs)
            count = self._forwards[number] = self._forwards.get(number, 0) + 1
            with _Alike(np.random.SeedSequence([self._seed, self._step, number, count])):
                return forward(*args, **kwargs)

        return alike


class _Alike(TorchFunctionMode):
    """While inside, random scalars of torch, NumPy and Python, by which layers are skipped, come from generators with a
    seed that all ranks share. Dropout still draws from torch's global generator.
    """

    def __init__(self, seed: np.random.SeedSequence):
        super().__init__()
        self._seed = int(seed.generate_state(1, np.uint32)[0])
        self._generator = torch.Generator().manual_seed(self._seed)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.rand and not kwargs and _is_single(args):
            return torch.rand(*args, generator=self._generator)
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        self._saved = random.getstate(), np.random.get_state()
        random.seed(self._seed)
        np.random.seed(self._seed)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        random.setstate(self._saved[0])
        np.random.set_state(self._saved[1])
        return super().__exit__(*error)


def _is_single(args: tuple[Any, ...]) -> bool:
    sizes = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    return all(size == 1 for size in sizes)


def _drops_layers(module: Any) -> bool:
    """Does its forward draw which layers run, with a probability above 0?"""
    # a class can be hashed, whatever mypy says of type[Any]
    if not _DRAWS.search(_source(type(module))):  # type: ignore[arg-type]
        return False
    config: Any = getattr(module, "config", None)
    values = {**vars(module), **(config.to_dict() if hasattr(config, "to_dict") else {})}
    return any(isinstance(value, float) and value > 0 for name, value in values.items() if _DRAWS.search(name))


@functools.cache
def _source(kind: type[Any]) -> str:
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError, AttributeError):
        return ""


# Experts


def apply_experts(model: Any, zero3: bool) -> list[str]:
    """Let all experts of a mixture-of-experts module take part in each backward pass, also those without a token.
    Returns the names of the modules that were changed.

    Args:
        zero3: whether DeepSpeed shards the weights; the modules then also become its leaf modules.
    """
    found = dict(_expert_lists(model))
    for module in found.values():
        module.register_forward_hook(functools.partial(_connect, weights=not zero3), with_kwargs=True)
    if zero3:
        from deepspeed.utils import set_z3_leaf_module

        for module in found.values():
            set_z3_leaf_module(module, True)
    return list(found)


def _expert_lists(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules whose forward chooses among a list of experts: the list itself, or what holds it."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        chooses = isinstance(module, _CONTAINERS) and type(module).forward not in (
            torch.nn.ModuleList.forward,
            torch.nn.ModuleDict.forward,
        )
        holds = any(
            isinstance(child, _CONTAINERS)
            and type(child).forward in (torch.nn.ModuleList.forward, torch.nn.ModuleDict.forward)
            and _EXPERTS.search(key)
            for key, child in module.named_children()
        )
        if chooses or holds:
            inside.update(id(child) for child in module.modules())
            yield name, module


def _connect(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, weights: bool) -> Any:
    """A forward hook: the output, tied to the module's input and (with `weights`) to all its weights, so that the
    backward pass reaches them on every rank.
    """
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.requires_grad]
    if not torch.is_grad_enabled() or not inputs:
        return output
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad] if weights else []
    if isinstance(output, torch.Tensor):
        return _Connected.apply(output, inputs[0], *learned)
    first = (
        next(
            (i for i, value in enumerate(output) if isinstance(value, torch.Tensor) and value.is_floating_point()), None
        )
        if isinstance(output, tuple)
        else None
    )
    return (
        output
        if first is None
        else (*output[:first], _Connected.apply(output[first], inputs[0], *learned), *output[first + 1 :])
    )


class _Connected(torch.autograd.Function):
    """The first argument; gradients of the others are zero, not absent."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*others)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradient, *(torch.zeros_like(other) for other in ctx.saved_tensors)


# ZeRO-3 and layers that were skipped


def forget_gradients(optimizer: Any) -> None:
    """Let a layer that is skipped have no gradient: DeepSpeed's ZeRO-3 overwrites its buffers only where there is one,
    and would apply the last step's again.
    """
    if (buffer := getattr(optimizer, "grad_partitions_flat_buffer", None)) is not None:
        buffer.zero_()
    for group in getattr(optimizer, "fp32_partitioned_groups_flat", None) or ():
        if getattr(group, "grad", None) is not None:  # the optimizer's own copy, where it is offloaded
            group.grad.zero_()
