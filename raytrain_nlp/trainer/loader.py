"""The feed's stream of micro-batches as the `DataLoader` that `Trainer` expects: with a length, resumable in the middle
of an epoch, over several epochs.

A thread reads the stream ahead of training (`_Ahead`). An exception in it is raised in the rank's main thread, where
the next batch is asked for. The thread ends with the stream, or when the loader is closed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypedDict

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from raytrain_nlp.data.feed import open_split, stream
from raytrain_nlp.data.split import MicroBatch, SplitSpec
from raytrain_nlp.data.windows import WindowedSpec
from raytrain_nlp.errors import FeedError

_CLOSE_S = 10.0
"""How long the end of a loader waits for a stream that hangs."""
EVAL_CACHE_BYTES = 256 << 20


class Share(TypedDict):
    """Which part of each global batch is this rank's, and how many CPU cores its stream may use."""

    world_size: int
    rank: int
    cpus: float


Beside = Callable[[MicroBatch], dict[str, Any]]
"""Makes further inputs for the forward on a micro-batch, tensors with its rows first."""


class FeedBatch(dict[str, Any]):
    """The inputs of one forward, with their place in the plan beside them."""

    micro_batch: MicroBatch

    def __init__(self, tensors: dict[str, Any], micro_batch: MicroBatch | None = None):
        super().__init__(tensors)
        if micro_batch is not None:
            self.micro_batch = micro_batch


def _batch_of(micro_batch: MicroBatch, beside: Beside | None) -> FeedBatch:
    return FeedBatch({**micro_batch.tensors, **(beside(micro_batch) if beside else {})}, micro_batch)


class FeedDataset(Dataset):
    """Micro-batches, indexed by their number in the epoch. A stream lies underneath, so they must be read in order;
    `FeedError` is raised for any other index, and where the stream ends early.

    `Trainer` resumes through accelerate's `skip_first_batches`, which skips indices of the batch sampler and reads no
    batch: the stream starts where training resumes, so nothing is read to be thrown away. Where a callback ends an
    epoch early (`control.should_epoch_stop`), a new stream starts at the next epoch.
    """

    def __init__(self, open_at: Callable[[int], Iterator[MicroBatch]], per_epoch: int, num_rows: int, position: int):
        self._open_at, self._per_epoch, self.num_rows, self._position = open_at, per_epoch, num_rows, position
        self._batches = open_at(position)
        self.wait_s = 0.0
        """Seconds spent waiting for the stream."""
        self.beside: Beside | None = None
        self.taken: list[MicroBatch] = []
        """Micro-batches read since the list was last cleared (`StepMixin.get_batch_samples` clears it)."""

    def __len__(self) -> int:
        return self._per_epoch

    def __getitem__(self, index: int) -> FeedBatch:
        if index == 0 and self._position % self._per_epoch:
            self._position += -self._position % self._per_epoch
            self._batches = self._open_at(self._position)
        if index != self._position % self._per_epoch:
            raise FeedError(
                f"the trainer asked for micro-batch {index}, the feed stands at {self._position % self._per_epoch}."
            )
        started = time.perf_counter()
        micro_batch = next(self._batches, None)
        self.wait_s += time.perf_counter() - started
        if micro_batch is None:
            raise FeedError(f"the feed ended at micro-batch {self._position}.")
        self._position += 1
        self.taken.append(micro_batch)
        return _batch_of(micro_batch, self.beside)


class TrainLoader(DataLoader):
    """A rank's training batches from global batch `start` of the plan on, over all epochs that are left.

    The stream starts at once, in the background: data get ready while the model is being built.

    Args:
        start: first global batch, counted over all epochs.
        stop: global batch to end before.
        accumulation: micro-batches of each rank in a global batch.
        cpus: CPU cores for the stream of this rank.
    """

    def __init__(
        self,
        spec: SplitSpec | WindowedSpec,
        steps_per_epoch: int,
        *,
        start: int,
        stop: int,
        world_size: int,
        rank: int,
        accumulation: int,
        cpus: float,
    ):
        num_rows = 0 if isinstance(spec, WindowedSpec) else spec.plan.num_rows
        self._ahead: _Ahead | None = None

        def open_at(position: int) -> Iterator[MicroBatch]:
            if self._ahead is not None:
                self._ahead.close()
            start = position // accumulation
            batches = stream(
                spec, start=start, stop=stop, world_size=world_size, rank=rank, accumulation=accumulation, cpus=cpus
            )
            self._ahead = _Ahead(_checked(batches, start, accumulation))
            return iter(self._ahead)

        self.feed = FeedDataset(open_at, steps_per_epoch * accumulation, num_rows, start * accumulation)
        # a generator of its own: the loader must not draw from the RNG that dropout uses
        super().__init__(
            self.feed,
            batch_sampler=BatchSampler(SequentialSampler(self.feed), 1, False),
            collate_fn=_single,
            generator=torch.Generator(),
        )

    def close(self) -> None:
        """End the stream, wherever it stands."""
        if self._ahead is not None:
            self._ahead.close()


class EvalLoader:
    """A rank's evaluation batches. Up to `EVAL_CACHE_BYTES` of tensors stay in memory for the next evaluation; a larger
    split is streamed again each time.
    """

    def __init__(
        self,
        spec: SplitSpec,
        dataset: Dataset,
        *,
        steps: int,
        world_size: int,
        rank: int,
        cpus: float,
        accumulation: int = 1,
    ):
        self.dataset = dataset
        self.beside: Beside | None = None
        self._steps = steps * accumulation
        self._open = lambda: _checked(
            stream(spec, start=0, stop=steps, world_size=world_size, rank=rank, accumulation=accumulation, cpus=cpus),
            0,
            accumulation,
        )
        self._kept: list[MicroBatch] = []
        self._stream: Generator[MicroBatch, None, None] | None = None

    def close(self) -> None:
        """End an evaluation that was left in the middle."""
        if self._stream is not None:
            self._stream.close()

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[FeedBatch]:
        if len(self._kept) == self._steps:
            yield from (_batch_of(micro_batch, self.beside) for micro_batch in self._kept)
            return
        kept: list[MicroBatch] = []
        size = 0
        self._stream = self._open()
        for micro_batch in self._stream:
            size += sum(tensor.nbytes for tensor in micro_batch.tensors.values())
            if size <= EVAL_CACHE_BYTES:
                kept.append(micro_batch)
            else:
                kept.clear()
            yield _batch_of(micro_batch, self.beside)
        self._kept = kept


class _Ahead:
    """Runs an iterator in a thread, at most `depth` items ahead. An exception is raised in place of the next item."""

    def __init__(self, items: Generator[MicroBatch, None, None], depth: int = 16):
        self._items, self._closed = items, threading.Event()
        self._queue: queue.Queue[MicroBatch | BaseException | None] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[MicroBatch]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item

    def close(self) -> None:
        self._closed.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised in the consumer's thread
            self._put(error)
        finally:
            self._items.close()

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def find_row(spec: SplitSpec | WindowedSpec) -> Callable[[int], str]:
    """`row id -> file:line`, for messages."""
    return lambda row: open_split(spec).locate(row)


def _checked(batches: Iterator[MicroBatch], start: int, accumulation: int) -> Generator[MicroBatch, None, None]:
    """The stream; raises `FeedError` where a micro-batch is not the one that the plan has at this position."""
    for position, micro_batch in enumerate(batches, start * accumulation):
        if (micro_batch.step, micro_batch.micro) != divmod(position, accumulation):
            raise FeedError(
                f"the feed gave step {micro_batch.step}.{micro_batch.micro} where {divmod(position, accumulation)} was "
                f"due."
            )
        yield micro_batch


def _single(batches: list[FeedBatch]) -> FeedBatch:
    return batches[0]
