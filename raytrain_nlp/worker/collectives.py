"""Small objects between ranks, and the one decision all ranks must take alike: which checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from raytrain_nlp.checkpoint import store


def gather_objects(value: Any, to_rank: int | None = None) -> list[Any]:
    """`value` of every rank, in rank order; on all ranks, or on `to_rank` only (elsewhere an empty list)."""
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
    """The first rank's value on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def find_common_checkpoint(root: Path, note: Callable[[str], None]) -> store.Checkpoint | None:
    """The newest good checkpoint; ranks share the hashing and agree on the answer."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def agree(checkpoint: store.Checkpoint) -> str | None:
        return next((wrong for wrong in gather_objects(store.damage(checkpoint, rank, world)) if wrong), None)

    return store.find_checkpoint(root, agree, note)
