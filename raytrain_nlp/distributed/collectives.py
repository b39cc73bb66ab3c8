"""Collectives of small picklable objects; without a process group they return the caller's own value."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def gather_objects(value: Any, to_rank: int | None = None) -> list[Any]:
    """`value` of every rank, in rank order; on all ranks, or on `to_rank` only (elsewhere an empty list). Every rank
    must call it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    if to_rank is None:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered
    gathered = [None] * dist.get_world_size() if dist.get_rank() == to_rank else []
    dist.gather_object(value, gathered or None, dst=to_rank)
    return gathered


def broadcast_object(value: Any) -> Any:
    """The first rank's value, on all ranks. Every rank must call it; the others' `value` is ignored."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_previous(value: Any) -> Any:
    """The `value` of the rank before this one; of the last, for the first. Every rank must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    rank, world_size = dist.get_rank(), dist.get_world_size()
    box = [None]
    # even ranks send first, so that not all of them wait to be heard
    if rank % 2 == 0:
        dist.send_object_list([value], dst=(rank + 1) % world_size)
    dist.recv_object_list(box, src=(rank - 1) % world_size)
    if rank % 2:
        dist.send_object_list([value], dst=(rank + 1) % world_size)
    return box[0]
