"""Sums of the bits of tensors: equal for equal bits, and another number where a single bit has flipped.

A tensor is read as whole numbers of the widest kind that fits its bytes, and these are added in int64. Overflow wraps
around, so one flipped bit changes the sum by a power of two, which is never 0. Two flips may cancel out; a sum shows
what happens to hardware by chance, not what somebody changes on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_KINDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


def bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the bits of a tensor: int64, shape [], on its device. The host does not wait for it."""
    flat = tensor.detach().contiguous().reshape(-1)
    if not flat.numel():
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    offset = flat.storage_offset() * flat.element_size()
    kind = next(kind for size, kind in _KINDS if flat.nbytes % size == 0 and offset % size == 0)
    return flat.view(kind).sum(dtype=torch.int64)


def bit_sums(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The sums of tensors of one device: int64, shape [tensors]."""
    sums = [bit_sum(tensor) for tensor in tensors]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64, device=device)


def minority(values: list[object]) -> list[int]:
    """The ranks whose value is not that of most ranks; all ranks where no value is that of more than half.

    Args:
        values: of each rank.
    """
    most = max(values, key=values.count)
    if values.count(most) * 2 <= len(values):
        return list(range(len(values)))
    return [rank for rank, value in enumerate(values) if value != most]
