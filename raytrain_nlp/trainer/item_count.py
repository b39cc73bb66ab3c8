"""A `num_items_in_batch` that records whether a loss has been divided by it."""

from __future__ import annotations

from typing import Any

import torch

from raytrain_nlp.compat.torch import plain_functions


class Count(torch.Tensor):
    """A number of rows or tokens, shape []. Operations on it return plain tensors."""

    used: bool
    """Has an operation read the value? Reading its device, shape or dtype does not count."""

    @classmethod
    def of(cls, value: torch.Tensor) -> Count:
        """`value`, a tensor of shape [], as a count that is not used yet."""
        count = value.detach().as_subclass(cls)
        count.used = False
        return count

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = (
            getattr(function, "__name__", "") != "__get__"
        )  # attributes such as device and shape: the value is not read
        with plain_functions():
            return function(
                *(_plain(value, reads) for value in args),
                **{name: _plain(value, reads) for name, value in (kwargs or {}).items()},
            )


def _plain(value: Any, reads: bool) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item, reads) for item in value)
    if isinstance(value, Count):
        value.used |= reads
        return value.as_subclass(torch.Tensor)
    return value
