"""Autocast on the meta device, which torch's own leaves alone: DDP in half precision keeps weights in fp32 and computes
products in 16 bits, so that what is saved between them is a mixture of both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from raytrain_nlp.compat.torch import is_weight, replaced_functions

_HALF = torch.bfloat16
_METHODS = ("matmul", "bmm", "mm", "addmm", "baddbmm")
_PRODUCTS = {
    F: ("linear", "conv1d", "grouped_mm"),
    torch: (*_METHODS, "einsum"),
    torch.Tensor: (*_METHODS, "__matmul__"),
}
"""Functions whose arguments autocast makes 16 bits wide, of those that models use (torch's list: "CUDA Ops that
autocast to float16"; the same for bfloat16)."""
_EXACT = {F: ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "softplus")}
"""Those whose arguments it makes fp32."""


@contextlib.contextmanager
def autocast_on_meta(uncounted: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """While inside, functions cast their arguments as under autocast in 16 bits.

    Args:
        uncounted: a context in which no tensor counts that is made: copies of weights, which autocast keeps until the
            forward ends, are planned with the weights.
    """
    copies: dict[int, torch.Tensor] = {}

    def half(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not is_weight(value):
            return value.to(_HALF)
        if not isinstance(value, torch.nn.Parameter):
            with uncounted():
                return value.to(_HALF)
        if id(value) not in copies:
            with uncounted():
                copies[id(value)] = value.to(_HALF)
        return copies[id(value)]

    with contextlib.ExitStack() as stack:
        for tables, cast in ((_PRODUCTS, half), (_EXACT, _exact)):
            for module, names in tables.items():
                wrapped = {name: _casting(getattr(module, name), cast) for name in names if hasattr(module, name)}
                stack.enter_context(replaced_functions(module, **wrapped))
        yield


def half_of(value: Any) -> Any:
    """A tensor in 16 bits, as attention gets it; other values as they are."""
    return value.to(_HALF) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == _HALF else value


def _casting(function: Callable[..., Any], cast: Callable[[Any], Any]) -> Callable[..., Any]:
    def casting(*args: Any, **kwargs: Any) -> Any:
        return function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return casting
