"""The plan: from the lengths of rows, a seed and a batch policy to an ordered list of global batches of row ids.

Pure NumPy; knows nothing of Ray, workers or tensors. Any global batch of any epoch is found without walking there: an
epoch is an order of blocks of neighbouring rows (an array of N / 256 numbers), cut into windows of about 65,536 rows;
all else happens inside one window. So memory is bounded, reading stays local, and a resume at step k costs what a
start costs.

Shuffles draw from `numpy.random.default_rng` seeded with (seed, epoch, window, purpose). NumPy may change a generator's
methods between releases, so its version is part of every checkpoint's manifest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from raytrain_nlp.data.mixture import Mixture

BLOCK_ROWS = 256
WINDOW_ROWS = 65_536
SORT_BATCHES = 100
"""Length bucketing sorts this many global batches at a time: 1.5 % padding on log-normal lengths, and rows still meet
new neighbours.
"""


@dataclass(frozen=True)
class PlanSpec:
    """Everything a plan depends on besides the lengths. Equal specs and lengths give equal plans on any machine."""

    num_rows: int
    seed: int
    strategy: str = "group_by_length"
    """random, sequential or group_by_length, as `TrainingArguments.train_sampling_strategy`."""
    global_batch_size: int | None = None
    """Rows of a global batch, or None with `batch_tokens`."""
    batch_tokens: int | None = None
    """Padded tokens of a global batch, at most; a row longer than this is a batch of its own."""
    drop_last: bool = False
    """Drop the remainder of an epoch instead of making a short batch of it."""
    mixture: Mixture | None = None
    """Several sources with shares of their own; needs `global_batch_size`. The plan then is a `MixturePlan`."""


class Plan:
    """The global batches of all epochs.

    Args:
        spec: what the plan depends on.
        lengths: tokens of each row, shape [num_rows]; may be memory-mapped. Only read where the policy needs lengths.
        token_counts: `token_counts` of an equal plan, so that a token budget's batches need not be counted again.
    """

    def __init__(self, spec: PlanSpec, lengths: np.ndarray | None = None, token_counts: Sequence[int] | None = None):
        if (spec.global_batch_size is None) == (spec.batch_tokens is None):
            raise ValueError("give global_batch_size or batch_tokens")
        self.spec, self._lengths = spec, lengths
        if token_counts is not None:
            self.token_counts = np.asarray(token_counts, dtype=np.int64)
        self._size, self._budget = spec.global_batch_size or 1, spec.batch_tokens or 0  # one of them is the policy's
        self._window = max(WINDOW_ROWS // self._size, 1) * self._size
        self._num_windows = -(-spec.num_rows // self._window)
        self._cached_window: tuple[tuple[int, int], list[np.ndarray]] = ((-1, -1), [])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape [num_rows]; only where they were given."""
        assert self._lengths is not None, "whoever asks has given them"
        return self._lengths

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the same in every epoch."""
        if self.spec.batch_tokens:
            return int(self.token_counts.sum())
        full, rest = divmod(self.spec.num_rows, self._size)
        return full + (1 if rest and not self.spec.drop_last else 0)

    @property
    def dropped_rows(self) -> int:
        """Rows of each epoch that are in no batch (other ones in each epoch when shuffled)."""
        return (
            self.spec.num_rows % self.spec.global_batch_size
            if self.spec.drop_last and self.spec.global_batch_size
            else 0
        )

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """Row ids of global batch `index` of `epoch`: int64, shape [rows of the batch]."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch}")
        window, offset = self._locate(epoch, index)
        if self._cached_window[0] != (epoch, window):
            self._cached_window = ((epoch, window), self._batches_of_window(epoch, window))
        return self._cached_window[1][offset]

    def at(self, step: int) -> tuple[int, int, np.ndarray]:
        """Epoch, index in the epoch and row ids of the global batch that optimizer update number `step` (from 0)
        sees.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch, index, self.batch(epoch, index)

    def order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Row ids at places [start, stop) of the order in which an epoch sees rows, before they are put into batches.
        Not under a token budget.
        """
        parts = [
            self._rows_of_window(epoch, window)[max(start - window * self._window, 0) : stop - window * self._window]
            for window in range(start // self._window, -(-stop // self._window))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all rows, without padding."""
        return int(self.lengths[: self.spec.num_rows].sum(dtype=np.int64))

    def _locate(self, epoch: int, index: int) -> tuple[int, int]:
        if not self.spec.batch_tokens:
            return divmod(index, self._window // self._size)
        order = self._window_order(epoch)
        ends = np.cumsum(self.token_counts[order])
        place = int(np.searchsorted(ends, index, side="right"))
        return int(order[place]), index - int(ends[place - 1] if place else 0)

    def _batches_of_window(self, epoch: int, window: int) -> list[np.ndarray]:
        if self.spec.batch_tokens:
            return self._token_batches(epoch, window)
        rows = self._rows_of_window(epoch, window)
        size = self._size
        whole = len(rows) - len(rows) % size
        if self.spec.strategy == "group_by_length":
            body = _sorted_in_groups(rows[:whole], self.lengths, size * SORT_BATCHES).reshape(-1, size)
            batches = list(self._random(epoch, window, "batches").permutation(body, axis=0))
        else:
            batches = list(rows[:whole].reshape(-1, size))
        return batches if whole == len(rows) else [*batches, rows[whole:]]

    def _rows_of_window(self, epoch: int, window: int) -> np.ndarray:
        """The row ids of a window in shuffled order."""
        start = window * self._window
        positions: np.ndarray = np.arange(start, min(start + self._window, self.spec.num_rows), dtype=np.int64)
        if self.spec.strategy == "sequential":
            return positions
        order = self._block_order(epoch)
        short = self.spec.num_rows % BLOCK_ROWS
        if short:  # positions behind the one short block are shifted by what it lacks
            end_of_short = int(np.flatnonzero(order == len(order) - 1)[0]) * BLOCK_ROWS + short
            positions = np.where(positions < end_of_short, positions, positions + BLOCK_ROWS - short)
        rows = order[positions // BLOCK_ROWS] * BLOCK_ROWS + positions % BLOCK_ROWS
        return self._random(epoch, window, "rows").permutation(rows)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its process
    def _block_order(self, epoch: int) -> np.ndarray:
        blocks = -(-self.spec.num_rows // BLOCK_ROWS)
        return self._random(epoch, 0, "blocks").permutation(blocks)

    def _random(self, epoch: int, window: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, epoch, window, *purpose.encode()])

    # A token budget. Which rows share a window is drawn once from the seed, so that the number of batches of each
    # window,
    # and with it of an epoch, is one number; epochs differ in the order of windows and batches and in who meets whom.

    def _token_batches(self, epoch: int, window: int) -> list[np.ndarray]:
        rows = self._random(epoch, window, "ties").permutation(self._rows_of_window(0, window))
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        cuts = _token_cuts(self.lengths[rows], self._budget)
        batches = np.split(rows, cuts)
        return [batches[i] for i in self._random(epoch, window, "batches").permutation(len(batches))]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _window_order(self, epoch: int) -> np.ndarray:
        return self._random(epoch, 0, "windows").permutation(self._num_windows)

    @functools.cached_property
    def token_counts(self) -> np.ndarray:
        """Batches of each window under a token budget: reads all lengths once (about 0.3 s a million rows)."""
        rows = (self._rows_of_window(0, window) for window in range(self._num_windows))
        return np.array(
            [len(_token_cuts(np.sort(self.lengths[part]), self._budget)) + 1 for part in rows], dtype=np.int64
        )


def split_batch(rows: np.ndarray, world_size: int, accumulation: int) -> list[list[np.ndarray]]:
    """A global batch as `[accumulation][world_size]` micro-batches of nearly equal size, each a slice; some may be
    empty.
    """
    parts = np.array_split(rows, world_size * accumulation)
    return [parts[i * world_size : (i + 1) * world_size] for i in range(accumulation)]


def _sorted_in_groups(rows: np.ndarray, lengths: np.ndarray, group: int) -> np.ndarray:
    """Rows sorted by length inside consecutive groups; rows of equal length keep their (random) order."""
    key: np.ndarray = np.arange(len(rows)) // group
    return rows[np.lexsort((lengths[rows], key))]


def _token_cuts(lengths: np.ndarray, budget: int) -> list[int]:
    """Where to cut ascending lengths so that rows x longest <= budget in each piece."""
    cuts: list[int] = []
    start = 0
    while True:
        # rows x longest grows with each row taken, so the last row that fits is found by bisection
        most = min(max(budget // max(int(lengths[start]), 1), 1), len(lengths) - start)
        cost = lengths[start : start + most].astype(np.int64) * np.arange(1, most + 1)
        start += max(int(np.searchsorted(cost, budget, side="right")), 1)
        if start >= len(lengths):
            return cuts
        cuts.append(start)
