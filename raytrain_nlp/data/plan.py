"""The plan: the order in which training sees rows, as a list of global batches of row ids. It follows from the lengths
of the rows, a seed and a batch policy.

Pure NumPy, without Ray, workers or tensors. Any global batch of any epoch is computed without those before it: an epoch
is a permutation of blocks of 256 neighbouring rows, cut into windows of about 65,536 rows, and everything else happens
inside one window. So memory stays small, reads stay local, and resuming at step k costs as much as starting.

Shuffles use `numpy.random.default_rng`, seeded with (seed, epoch, window, purpose). NumPy may change the methods of a
generator between releases, so its version is in every checkpoint's manifest.
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
"""Number of global batches that are sorted by length together. With log-normal lengths this leaves 1.5 % padding, and
rows still get new neighbours in every epoch."""


@dataclass(frozen=True)
class PlanSpec:
    """Everything that a plan depends on, except for the lengths. Equal specs and lengths give equal plans on any
    machine.
    """

    num_rows: int
    seed: int
    strategy: str = "group_by_length"
    """random, sequential or group_by_length, as `train_sampling_strategy` of `TrainingArguments`."""
    global_batch_size: int | None = None
    """Rows of a global batch; None where `batch_tokens` is given."""
    batch_tokens: int | None = None
    """Padded tokens that a global batch has at most. A longer row is a batch of its own."""
    drop_last: bool = False
    """Leave out the rows that remain at the end of an epoch, instead of making a smaller batch of them."""
    mixture: Mixture | None = None
    """Sources with shares; needs `global_batch_size`. The plan is then a `MixturePlan`."""


class Plan:
    """The global batches of all epochs.

    Args:
        spec: what the plan depends on.
        lengths: tokens of each row, shape [num_rows], may be memory-mapped; only read where the policy needs them.
        token_counts: `token_counts` of an equal plan with `batch_tokens`, so that batches need not be counted again.
    """

    def __init__(self, spec: PlanSpec, lengths: np.ndarray | None = None, token_counts: Sequence[int] | None = None):
        if (spec.global_batch_size is None) == (spec.batch_tokens is None):
            raise ValueError("give global_batch_size or batch_tokens")
        self.spec, self._lengths = spec, lengths
        if token_counts is not None:
            self.token_counts = np.asarray(token_counts, dtype=np.int64)
        self._size, self._budget = spec.global_batch_size or 1, spec.batch_tokens or 0  # the spec has one of the two
        self._window = max(WINDOW_ROWS // self._size, 1) * self._size
        self._num_windows = -(-spec.num_rows // self._window)
        self._cached_window: tuple[tuple[int, int], list[np.ndarray]] = ((-1, -1), [])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape [num_rows]. Only available where lengths were given."""
        assert self._lengths is not None, "this plan was opened without lengths"
        return self._lengths

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch; the same for every epoch."""
        if self.spec.batch_tokens:
            return int(self.token_counts.sum())
        full, rest = divmod(self.spec.num_rows, self._size)
        return full + (1 if rest and not self.spec.drop_last else 0)

    @property
    def dropped_rows(self) -> int:
        """Number of rows in each epoch that are in no batch. With shuffling these are other rows in each epoch."""
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
        """The global batch of an optimizer update.

        Args:
            step: number of the update, from 0, counted over all epochs.

        Returns:
            The epoch, the index in the epoch, and the row ids.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch, index, self.batch(epoch, index)

    def order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Row ids from position `start` up to `stop` of an epoch, in the order before rows are put into batches. Not
        available with `batch_tokens`.
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
        """Row ids of a window in shuffled order."""
        start = window * self._window
        positions: np.ndarray = np.arange(start, min(start + self._window, self.spec.num_rows), dtype=np.int64)
        if self.spec.strategy == "sequential":
            return positions
        order = self._block_order(epoch)
        short = self.spec.num_rows % BLOCK_ROWS
        if short:  # positions after the one short block are shifted by the rows that it lacks
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

    # With `batch_tokens`, which rows share a window is drawn once from the seed, so that the number of batches in each
    # window, and so in an epoch, never changes. Epochs differ in the order of windows and batches, and in which rows of
    # equal length are in one batch.

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
        """With `batch_tokens`: number of batches in each window, int64 [windows]. Reads all lengths once, at about 0.3
        s for a million rows.
        """
        rows = (self._rows_of_window(0, window) for window in range(self._num_windows))
        return np.array(
            [len(_token_cuts(np.sort(self.lengths[part]), self._budget)) + 1 for part in rows], dtype=np.int64
        )


def split_batch(rows: np.ndarray, world_size: int, accumulation: int) -> list[list[np.ndarray]]:
    """A global batch as `[accumulation][world_size]` micro-batches, consecutive slices of nearly equal size. Some may
    be empty.
    """
    parts = np.array_split(rows, world_size * accumulation)
    return [parts[i * world_size : (i + 1) * world_size] for i in range(accumulation)]


def _sorted_in_groups(rows: np.ndarray, lengths: np.ndarray, group: int) -> np.ndarray:
    """Rows sorted by length within groups of `group` consecutive rows. Rows of equal length keep their order."""
    key: np.ndarray = np.arange(len(rows)) // group
    return rows[np.lexsort((lengths[rows], key))]


def _token_cuts(lengths: np.ndarray, budget: int) -> list[int]:
    """Positions at which ascending lengths are cut so that each part has rows x longest <= budget."""
    cuts: list[int] = []
    start = 0
    while True:
        # rows x longest grows with each further row, so bisection finds the last row that fits
        most = min(max(budget // max(int(lengths[start]), 1), 1), len(lengths) - start)
        cost = lengths[start : start + most].astype(np.int64) * np.arange(1, most + 1)
        start += max(int(np.searchsorted(cost, budget, side="right")), 1)
        if start >= len(lengths):
            return cuts
        cuts.append(start)
