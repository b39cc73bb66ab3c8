"""RMSNorm (Zhang and Sennrich 2019) in one kernel. transformers writes it as six operations, each of which reads and
writes all hidden states on a GPU, and a dozen in the backward pass. torch has it as one
(`torch.nn.functional.rms_norm`), with the same result but for the rounding to half precision in between.
"""

from __future__ import annotations

import functools
import itertools
import types
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

_EPS = ("variance_epsilon", "eps")
_TOLERANCE = 1e-5
_TYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class _Kind:
    """What a class of norms computes: states / rms(states) * (weight + offset)."""

    offset: float
    """1 in the manner of Gemma, else 0."""
    halves: dict[tuple[bool, bool], bool]
    """Is the result of half precision? Keyed by whether the states are, and whether the weight is."""


def fuse_norms(model: Any) -> int:
    """Let the RMSNorms of a model run as one kernel each. A class of them is recognized by what its forward computes,
    so that those with a gate or a bias stay as they are.

    Args:
        model: its weights may be sharded, or on the meta device.

    Returns:
        how many modules were changed.
    """
    count = 0
    for module in model.modules():
        cls: Any = type(module)
        kind = _kind_of(cls) if _eps_of(module) is not None else None
        if kind is not None and getattr(module.forward, "__func__", None) is cls.forward:
            module.forward = types.MethodType(functools.partial(_forward, kind), module)
            count += 1
    return count


def _eps_of(module: Any) -> float | None:
    if "Norm" not in type(module).__name__ or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    return next((getattr(module, name) for name in _EPS if isinstance(getattr(module, name, None), float)), None)


@functools.cache
def _kind_of(cls: Any) -> _Kind | None:
    """What the class's forward computes, seen by running it on a few numbers; None where that is something else."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(*shape, generator=generator, device="cpu") for shape in ((3, 8), (8,)))
    probe = cls.__new__(cls)
    torch.nn.Module.__init__(probe)
    for name in _EPS:
        setattr(probe, name, 0.5)
    probe.weight = torch.nn.Parameter(weight, requires_grad=False)
    try:
        made = cls.forward(probe, states)
        offset = next((offset for offset in (0.0, 1.0) if _equal(made, _fused(states, weight + offset, 0.5))), None)
        halves = {}
        for of_states, of_weight in itertools.product(_TYPES, _TYPES):
            probe.weight = torch.nn.Parameter(weight.to(of_weight), requires_grad=False)
            result = cls.forward(probe, states.to(of_states))
            halves[of_states != torch.float32, of_weight != torch.float32] = result.dtype != torch.float32
    except Exception:  # whatever a class needs besides these; it is left alone  # noqa: BLE001
        return None
    return None if offset is None else _Kind(offset, halves)


def _equal(made: Any, expected: torch.Tensor) -> bool:
    return isinstance(made, torch.Tensor) and torch.allclose(made, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def _forward(kind: _Kind, self: Any, states: torch.Tensor) -> torch.Tensor:
    """`states`: [..., hidden size]."""
    weight = self.weight
    wide = torch.promote_types(states.dtype, weight.dtype)
    scale = weight.to(wide) if not kind.offset else (weight.float() + kind.offset).to(wide)
    result = _fused(states.to(wide), scale, _eps_of(self) or 0.0)
    if not kind.halves[states.dtype.itemsize < 4, weight.dtype.itemsize < 4]:
        return result.to(torch.promote_types(wide, torch.float32))
    return result.to(states.dtype if states.dtype.itemsize < 4 else weight.dtype)


def _fused(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _Planned.apply(states, weight) if states.is_meta else F.rms_norm(states, weight.shape, weight, eps)


class _Planned(torch.autograd.Function):
    """Stands for the kernel where memory is planned: it saves its input and one fp32 number for each token."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(states, weight, states.new_empty((*states.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        states, weight, _ = ctx.saved_tensors
        return torch.empty_like(states), torch.empty_like(weight)
