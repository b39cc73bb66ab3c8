"""Windows: training data that would take too long to prepare first are prepared one window at a time while training
goes on.

    files --split--> windows of 1, 2, 4, ... 256 MB --prepare_pieces--> .cache/windows/FINGERPRINT/00000, 00001, ...

A window is a token store with its own plan, so that rows are shuffled, sorted by length and packed within it. What a
window holds depends on the files alone. The first epoch takes the windows in order, later ones in an order drawn from
seed and epoch. Batches do not depend on when a window was prepared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raytrain_nlp.data.packing import Blocks, blocks_folder
from raytrain_nlp.data.prepare import find_tokens
from raytrain_nlp.data.reading.sources import PIECE_BYTES, Piece, SourceFile, split_file
from raytrain_nlp.data.shards import open_store
from raytrain_nlp.data.split import MicroBatch, Split, SplitSpec
from raytrain_nlp.errors import FeedError
from raytrain_nlp.paths import read_json, write_json

FIRST_BYTES, LARGEST_BYTES = 1 << 20, 256 << 20
"""Size of the first window and of the largest. The first ones are small so that training begins soon; larger ones
shuffle better."""
_POLL_S = 0.2


@dataclass(frozen=True)
class WindowedSpec:
    """A training split in windows, as a rank reads it. Plain values."""

    folder: str
    """Folder that holds the tokens of each window, in a folder named by its number."""
    count: int
    """Number of windows."""
    split: SplitSpec
    """The spec of every window, except for its folders, number of rows and seed."""
    failure: str = ""
    """JSON file in the run's folder that says why no further window will come; it exists only then."""
    wanted: str = ""
    """JSON file in the run's folder in which a rank writes the window that it waits for."""

    @property
    def context(self) -> object:
        """What collating needs, the same for all windows."""
        return self.split.context


def split_windows(files: Iterable[SourceFile]) -> list[list[Piece]]:
    """The pieces of each window, in order."""
    windows: list[list[Piece]] = [[]]
    size, target, last_size = 0.0, FIRST_BYTES, 0.0
    for file in files:
        share = file.size / max(sum(1 for _ in split_file(file, FIRST_BYTES)), 1)
        for piece in split_file(file, FIRST_BYTES):
            if size + share / 2 >= target:
                windows.append([])
                size, target = 0.0, min(target * 2, LARGEST_BYTES)
            last = windows[-1][-1] if windows[-1] else None
            if last and (last.path, last.end) == (piece.path, piece.start) and last_size + share <= PIECE_BYTES:
                windows[-1][-1], last_size = replace(last, end=piece.end), last_size + share
            else:
                windows[-1].append(piece)
                last_size = share
            size += share
    return windows


def window_folder(spec: WindowedSpec, number: int) -> Path:
    """The folder for the tokens of a window."""
    return Path(spec.folder) / f"{number:05d}"


def find_window(spec: WindowedSpec, number: int) -> SplitSpec | None:
    """The spec of a window, or None where it is not prepared yet. The plan of a window without rows has 0 rows."""
    folder = window_folder(spec, number)
    if find_tokens(folder) is None:
        return None
    rows, blocks, packing = open_store(str(folder)).num_rows, None, spec.split.packing
    if packing and rows:
        blocks = blocks_folder(folder, packing, [rows])
        if not blocks.exists():
            return None
        rows = len(Blocks(blocks, packing))
    seed = int(np.random.SeedSequence([spec.split.plan.seed, number]).generate_state(1)[0])
    return replace(
        spec.split,
        tokens=str(folder),
        blocks=str(blocks) if blocks else None,
        plan=replace(spec.split.plan, num_rows=rows, seed=seed),
    )


class WindowedSplit:
    """A split in windows, opened for reading; waits for windows that are not prepared yet."""

    def __init__(self, spec: WindowedSpec):
        self.spec = spec
        self._sizes: list[tuple[int, int]] = []
        """(steps, rows) of each window that is prepared, in order."""
        self._open: dict[int, Split] = {}

    @property
    def tokens_per_step(self) -> float:
        """Approximate number of tokens in a global batch of the first window."""
        return self._window(0).tokens_per_step

    def micro_batches(self, step: int, world_size: int, rank: int, accumulation: int) -> list[MicroBatch]:
        """This rank's micro-batches of the global batch of a step, fetched and padded, with NumPy arrays as tensors."""
        epoch, window, index = self.find(step)
        return self._window(window).micro_batches_of(
            epoch, index, step, world_size, rank, accumulation, self._first_row(window)
        )

    def locate(self, row: int) -> str:
        """Where a row was read from, as `file:line`."""
        self.steps_known()
        ends = np.cumsum([rows for _, rows in self._sizes])
        window = int(np.searchsorted(ends, row, side="right"))
        return self._window(window).locate(row - self._first_row(window))

    def find(self, step: int) -> tuple[int, int, int]:
        """The epoch, the window, and the index in the window of the global batch that an optimizer update sees.

        Args:
            step: number of the update, from 0.

        Raises:
            FeedError: no window has a row, or no further window will come.
        """
        for window in range(self.spec.count):
            steps, _ = self._size(window)
            if step < steps:
                return 0, window, step
            step -= steps
        total = sum(steps for steps, _ in self._sizes)
        if not total:
            raise FeedError(f"no window of {self.spec.folder} has a row.")
        epoch, step = 1 + step // total, step % total
        for window in np.random.default_rng([self.spec.split.plan.seed, epoch]).permutation(self.spec.count):
            steps, _ = self._sizes[window]
            if step < steps:
                return epoch, int(window), step
            step -= steps
        raise AssertionError("steps of an epoch")

    def steps_known(self) -> int:
        """Number of steps in the windows that are prepared, from the first one up to the first that is missing."""
        while len(self._sizes) < self.spec.count and (found := find_window(self.spec, len(self._sizes))):
            self._sizes.append(_size_of(found))
        return sum(steps for steps, _ in self._sizes)

    def _first_row(self, window: int) -> int:
        return sum(rows for _, rows in self._sizes[:window])

    def _size(self, window: int) -> tuple[int, int]:
        while len(self._sizes) <= window:
            self._sizes.append(_size_of(_await_window(self.spec, len(self._sizes))))
        return self._sizes[window]

    def _window(self, window: int) -> Split:
        if window not in self._open:
            if len(self._open) > 1:
                self._open.pop(next(iter(self._open)))
            self._open[window] = Split(_await_window(self.spec, window))
        return self._open[window]


def _size_of(spec: SplitSpec) -> tuple[int, int]:
    return (Split(spec).plan.steps_per_epoch, spec.plan.num_rows) if spec.plan.num_rows else (0, 0)


def _await_window(spec: WindowedSpec, number: int) -> SplitSpec:
    told = False
    while (found := find_window(spec, number)) is None:
        if not told:  # the feed reads ahead of training, so it alone knows which window is needed next
            write_json(Path(spec.wanted), {"window": number})
            told = True
        if failed := read_json(Path(spec.failure)):
            raise FeedError(failed["error"])
        time.sleep(_POLL_S)
    return found
