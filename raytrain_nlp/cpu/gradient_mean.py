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

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.timeline import TIMELINE

_WINDOW_BYTES = 64 << 20
"""Gradients are averaged in groups of this size at most, so that the shared memory does not grow with the model."""

_BLOCK = 1 << 16
"""Elements summed at once."""


class SharedMean:
    """State of the DDP communication hook: two sets of shared windows, used in turn.

    In turn, because a rank may write its next gradients while another still reads the last ones. Ranks wait for each
    other twice for a group, not for each of its buckets: on a busy machine each wait is for the one that is late.
    """

    def __init__(self) -> None:
        self._windows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self._turn = 0
        self._signal = torch.zeros(1)
        self._waiting: list[tuple[torch.Tensor, torch.futures.Future]] = []

    def add(self, flat: torch.Tensor, last: bool) -> torch.futures.Future:
        """Average a bucket of the backward pass over the ranks, in place; the future is done when it holds the mean.
        Collective: every rank must add the same buckets in the same order.

        Args:
            flat: the bucket's gradients, shape [elements].
            last: whether it is the last bucket of this backward pass.
        """
        done: torch.futures.Future = torch.futures.Future()
        if self._waiting and sum(_room(waiting) for waiting, _ in self._waiting) + _room(flat) > _WINDOW_BYTES:
            self._settle()
        self._waiting.append((flat, done))
        if last:
            self._settle()
        return done

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:  # it may be larger than a window
            for piece in waiting[0][0].split(max(_WINDOW_BYTES // waiting[0][0].element_size(), 1)):
                self._means_([piece])
        else:
            self._means_([flat for flat, _ in waiting])
        for flat, done in waiting:
            done.set_result(flat)

    def _means_(self, pieces: list[torch.Tensor]) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        placed = [(piece, windows, _parts(piece, world)) for piece, windows in zip(pieces, self._place(pieces))]
        for piece, windows, parts in placed:
            for owner, part in enumerate(parts):
                if owner != rank:
                    windows[rank][part] = piece[part]
        self._wait_for_all()
        for piece, windows, parts in placed:
            _sum_part(piece, windows, parts[rank], rank)
        self._wait_for_all()
        for piece, windows, parts in placed:
            for owner, part in enumerate(parts):
                if owner != rank:
                    piece[part] = windows[owner][part]

    def _place(self, pieces: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """For each piece a view of its place in the window of each rank, in the set of windows whose turn it is."""
        needed = sum(_room(piece) for piece in pieces)
        if not self._windows[0] or self._windows[0][0].numel() < needed:
            self._windows = (_share(needed), _share(needed))
        self._turn = 1 - self._turn
        found, start = [], 0
        for piece in pieces:
            found.append(
                [window[start : start + piece.nbytes].view(piece.dtype) for window in self._windows[self._turn]]
            )
            start += _room(piece)
        return found

    def _wait_for_all(self) -> None:
        with TIMELINE.phase("communication_wait"):
            dist.all_reduce(self._signal)


def _room(piece: torch.Tensor) -> int:
    """Bytes that a piece takes in a window, rounded up to cache lines of 64 bytes."""
    return -(-piece.nbytes // 64) * 64


def _parts(piece: torch.Tensor, world: int) -> list[slice]:
    """The slice of a piece that each rank sums, in rank order."""
    size = -(-piece.numel() // world)
    return [slice(owner * size, (owner + 1) * size) for owner in range(world)]


def _sum_part(piece: torch.Tensor, windows: list[torch.Tensor], mine: slice, rank: int) -> None:
    """Write the mean of this rank's part into its piece and its window."""
    addends = [piece[mine] if owner == rank else window[mine] for owner, window in enumerate(windows)]
    # block by block, so that a sum is still in the processor's cache when it is divided and written
    for result, told, *terms in zip(
        *(part.split(_BLOCK) for part in (piece[mine], windows[rank][mine], *addends)), strict=True
    ):
        total = terms[0] + terms[1]
        for term in terms[2:]:
            total += term
        result.copy_(total.div_(len(windows)))
        told.copy_(total)


class SharedMeanKwargs(DistributedDataParallelKwargs):
    """DDP's settings, with the shared mean as its communication hook where all ranks are on one machine; else
    gloo's.
    """

    def register_comm_hook(self, model: Any) -> None:
        """Called by accelerate with the `DistributedDataParallel` model. Collective."""
        if dist.get_world_size() > 1 and _can_share():
            model.register_comm_hook(SharedMean(), _hook)


# no annotations: DDP compares them with classes, here they would be text
def _hook(state, bucket):  # type: ignore[no-untyped-def]
    return state.add(bucket.buffer(), bucket.is_last())


def _can_share() -> bool:
    """Can every rank read what every other writes? Tried, not guessed from host names: containers may share those."""
    try:
        shared = _share(1)
        shared[dist.get_rank()].fill_(dist.get_rank() % 251 + 1)
    except OSError:
        shared = []
    gather_objects(None)  # all have written
    seen = [int(window) for window in shared]
    return all(gather_objects(seen == [rank % 251 + 1 for rank in range(dist.get_world_size())]))


def _share(size: int) -> list[torch.Tensor]:
    """Allocate `size` bytes for each rank in memory that all ranks map; uint8 tensors [size], in rank order.

    Collective: a rank that fails (`OSError`) still takes part in the exchange, so that the others do not hang.
    """
    descriptor = _create(size)
    opened = []
    try:
        for owner, number in gather_objects((os.getpid(), descriptor)):
            file = os.open(f"/proc/{owner}/fd/{number}", os.O_RDWR)
            try:
                opened.append(torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8, count=size))
            finally:
                os.close(file)
    finally:
        gather_objects(None)  # all have opened mine
        if descriptor >= 0:
            os.close(descriptor)
    return opened


def _create(size: int) -> int:
    """A file descriptor of `size` bytes of new memory (memfd_create(2)), or -1 where there is none."""
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
