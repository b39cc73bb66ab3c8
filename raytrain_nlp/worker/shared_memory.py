"""Mean of gradients over CPU ranks of one machine, through memory they share.

gloo sends every byte through TCP, on one machine too; with few cores that costs as much as a fifth of a step. Here each
rank writes its gradients where the others can read them and sums one part of them:

    write mine | wait for all | mean of my part, written over it | wait for all | read all parts

The sum of a part is taken in the order of the ranks, so the same gradients give the same bits. The memory is a `memfd`,
opened by the others through /proc: nothing has a name, and nothing is left of a process that is killed.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs

from raytrain_nlp.worker.collectives import gather_objects

_WINDOW_BYTES = 64 << 20
"""Gradients are averaged in pieces of this size, so that the shared memory does not grow with the model."""

_BLOCK = 1 << 16
"""Elements summed at once."""


class SharedMean:
    """State of the DDP communication hook: two sets of shared windows for each size, used in turn.

    In turn, because a rank may write its next gradients while another still reads the last ones.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[int, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self._turn = 0
        self._signal = torch.zeros(1)

    def mean_(self, flat: torch.Tensor) -> torch.Tensor:
        """Replace `flat`, shape [elements], by its mean over the ranks. Collective."""
        for piece in flat.split(max(_WINDOW_BYTES // flat.element_size(), 1)):
            self._piece_mean_(piece)
        return flat

    def _piece_mean_(self, piece: torch.Tensor) -> None:
        key = (piece.numel(), piece.dtype)
        if key not in self._windows:
            self._windows[key] = (_share(piece), _share(piece))
        self._turn = 1 - self._turn
        shared, rank, world = self._windows[key][self._turn], dist.get_rank(), dist.get_world_size()
        size = -(-piece.numel() // world)
        parts = [slice(owner * size, (owner + 1) * size) for owner in range(world)]
        for owner, part in enumerate(parts):
            if owner != rank:
                shared[rank][part] = piece[part]
        self._wait_for_all()
        mine = parts[rank]
        addends = [piece[mine] if owner == rank else window[mine] for owner, window in enumerate(shared)]
        # block by block, so that a sum is still in the processor's cache when it is divided and written
        for result, told, *terms in zip(*(part.split(_BLOCK) for part in (piece[mine], shared[rank][mine], *addends)), strict=True):
            total = terms[0] + terms[1]
            for term in terms[2:]:
                total += term
            result.copy_(total.div_(world))
            told.copy_(total)
        self._wait_for_all()
        for owner, part in enumerate(parts):
            if owner != rank:
                piece[part] = shared[owner][part]

    def _wait_for_all(self) -> None:
        dist.all_reduce(self._signal)


class SharedMeanKwargs(DistributedDataParallelKwargs):
    """DDP's settings, with the shared mean as its communication hook where all ranks are on one machine; else gloo's."""

    def register_comm_hook(self, model: Any) -> None:
        """Called by accelerate with the `DistributedDataParallel` model. Collective."""
        if dist.get_world_size() > 1 and _can_share():
            model.register_comm_hook(SharedMean(), _hook)


def _hook(state, bucket):  # no annotations: DDP compares them with classes, here they would be text
    done: torch.futures.Future = torch.futures.Future()
    done.set_result(state.mean_(bucket.buffer()))
    return done


def _can_share() -> bool:
    """Can every rank read what every other writes? Tried, not guessed from host names: containers may share those."""
    probe = torch.full((1,), float(dist.get_rank()))
    try:
        shared = _share(probe)
        shared[dist.get_rank()].copy_(probe)
    except OSError:
        shared = []
    gather_objects(None)  # all have written
    seen = [float(window) for window in shared]
    return all(gather_objects(seen == [float(rank) for rank in range(dist.get_world_size())]))


def _share(like: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of each rank, shaped as `like`, in memory that all ranks read and write. Collective, errors included."""
    size = max(like.nbytes, 1)
    descriptor = _create(size)
    opened = []
    try:
        for owner, number in gather_objects((os.getpid(), descriptor)):
            file = os.open(f"/proc/{owner}/fd/{number}", os.O_RDWR)
            try:
                opened.append(torch.frombuffer(mmap.mmap(file, size), dtype=like.dtype, count=like.numel()))
            finally:
                os.close(file)
    finally:
        gather_objects(None)  # all have opened mine
        if descriptor >= 0:
            os.close(descriptor)
    return opened


def _create(size: int) -> int:
    """A file descriptor of new memory, or -1 where the machine has none to give."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        descriptor = os.memfd_create("raytrain-nlp-gradients")
    except OSError:
        return -1
    try:
        os.posix_fallocate(descriptor, 0, size)  # no room is an error here, not a SIGBUS later
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor
