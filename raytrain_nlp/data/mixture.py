"""The plan of a mixture: global batches from several sources, each of which has a given share of every part of
training.

Each source is an endless sequence of its rows: all of them in one order, then all in another, and so on (the source's
own epochs). The plan takes as many rows from each source as its share says: exactly in an epoch, to within one row of
each source in a window, and to within about two rows in a batch of shuffled rows. Everything is computed from numbers,
so that any global batch is found without those before it, and is the same with any number of workers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from raytrain_nlp.data.plan import Plan, PlanSpec


@dataclass(frozen=True)
class Mixture:
    """The sources of a split, and how many rows of each an epoch of the plan takes. Plain values."""

    names: tuple[str, ...]
    ends: tuple[int, ...]
    """The rows of source i have the ids from `ends[i - 1]` (0 for the first source) up to, but not including,
    `ends[i]`."""
    stretches: tuple[tuple[int, ...], ...]
    """An epoch consists of one stretch, or of one for each stage of a curriculum: for each stretch, the number of rows
    of each source. Every stretch but the last consists of whole global batches."""

    @property
    def rows(self) -> list[int]:
        """Number of rows that each source has."""
        return [end - start for start, end in itertools.pairwise([0, *self.ends])]

    @property
    def rows_per_epoch(self) -> list[int]:
        """Number of rows that an epoch takes from each source."""
        return [sum(counts) for counts in zip(*self.stretches, strict=True)]


class MixturePlan(Plan):
    """The global batches of all epochs of a mixture; otherwise like `Plan`.

    Args:
        spec: must have `mixture` and `global_batch_size`.
        lengths: tokens of each row, shape [num_rows]; only read where the strategy needs them.
    """

    def __init__(self, spec: PlanSpec, lengths: np.ndarray | None = None):
        super().__init__(spec, lengths)
        assert spec.mixture is not None, "a spec without a mixture makes a `Plan`"
        self.mixture = spec.mixture
        self._per_epoch = np.array(self.mixture.rows_per_epoch, dtype=np.int64)
        self._targets = [np.array(targets, dtype=np.int64) for targets in self.mixture.stretches]
        self._before = np.cumsum([np.zeros_like(self._per_epoch), *self._targets], axis=0)
        """Rows of each source before each stretch of an epoch: int64 [stretches + 1, sources]."""
        windows = [-(-int(targets.sum()) // self._window) for targets in self._targets]
        self._first_windows = np.cumsum([0, *windows])
        self._first_rows = np.cumsum([0, *(int(targets.sum()) for targets in self._targets)])

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the same for every epoch."""
        full, rest = divmod(int(self._per_epoch.sum()), self._size)
        return full + (1 if rest and not self.spec.drop_last else 0)

    @property
    def dropped_rows(self) -> int:
        """Rows that an epoch takes from the sources and that are in no batch."""
        return int(self._per_epoch.sum()) % self._size if self.spec.drop_last else 0

    @property
    def tokens_per_epoch(self) -> int:
        """Expected tokens of an epoch, without padding: the mean length of each source's rows times the number of rows
        taken.
        """
        parts = np.split(self.lengths, self.mixture.ends[:-1])
        return round(sum(float(p.mean()) * n for p, n in zip(parts, self.mixture.rows_per_epoch, strict=True)))

    def _locate(self, epoch: int, index: int) -> tuple[int, int]:
        row = index * self._size
        stretch = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        window, offset = divmod(row - int(self._first_rows[stretch]), self._window)
        return int(self._first_windows[stretch]) + window, offset // self._size

    def _rows_of_window(self, epoch: int, window: int) -> np.ndarray:
        """Row ids of a window. Each source's rows come in the source's order and are spread evenly over the window."""
        stretch = int(np.searchsorted(self._first_windows, window, side="right")) - 1
        targets = self._targets[stretch]
        first = (window - int(self._first_windows[stretch])) * self._window
        taken = [_taken(targets, place) for place in (first, min(first + self._window, int(targets.sum())))]
        starts = epoch * self._per_epoch + self._before[stretch] + taken[0]
        counts = taken[1] - taken[0]
        random = self._random(epoch, window, "mix")
        rows, places = [], []
        for source, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            rows.append(self._sequence(source, start, start + count))
            jitter = 0.5 if self.spec.strategy == "sequential" else random.random(count)
            places.append((np.arange(count) + jitter) / max(count, 1))
        return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]

    def _sequence(self, source: int, start: int, stop: int) -> np.ndarray:
        """Row ids from position `start` up to `stop` of a source's endless sequence."""
        first = self.mixture.ends[source - 1] if source else 0
        size, parts = self.mixture.ends[source] - first, []
        while start < stop:
            epoch, place = divmod(start, size)
            count = min(stop - start, size - place)
            parts.append(self._own_plan(source).order(epoch, place, place + count))
            start += count
        return first + np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    @functools.cache  # noqa: B019 - a plan lives as long as its process
    def _own_plan(self, source: int) -> Plan:
        """The plan that orders a source's rows within the source's own epochs. Its seed depends on the source's name,
        so that adding another source does not change this order.
        """
        name, strategy = self.mixture.names[source], self.spec.strategy
        seed = int(np.random.SeedSequence([self.spec.seed, *name.encode()]).generate_state(1)[0])
        return Plan(
            PlanSpec(self.mixture.rows[source], seed, "sequential" if strategy == "sequential" else "random", 1)
        )


def open_plan(
    spec: PlanSpec, lengths: np.ndarray | None = None, token_counts: Sequence[int] | None = None
) -> Plan | MixturePlan:
    """The plan of a spec. The arguments are those of `Plan`."""
    return MixturePlan(spec, lengths) if spec.mixture else Plan(spec, lengths, token_counts)


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Divide `total` rows in proportion to weights; each part is within one row of its exact share (Hamilton's method
    of largest remainders).
    """
    exact = [Fraction(str(weight)) for weight in weights]
    quotas = [weight * total / sum(exact) for weight in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _taken(targets: np.ndarray, place: int) -> np.ndarray:
    """Number of rows of each source among the first `place` rows of a stretch: int64 [sources].

    Row j of a source that has n of the stretch's E rows is due at (j + 1/2) E / n (Webster's method). The first `place`
    rows in the order of these values add up to `place`, and each source's number only grows with it.
    """
    total, number = int(targets.sum()), len(targets)
    sure = np.floor(targets * (max(place - number, 0) / max(total, 1)) + 0.5).astype(np.int64)
    sure = np.minimum(sure, targets) if place > number else np.zeros_like(targets)
    left = place - int(sure.sum())
    if not left:
        return sure
    sources: np.ndarray = np.repeat(np.arange(number), left)
    rows = np.repeat(sure, left) + np.tile(np.arange(left), number)
    inside = rows < targets[sources]
    sources, rows = sources[inside], rows[inside]
    order = np.lexsort((sources, (rows + 0.5) / targets[sources]))[:left]
    return sure + np.bincount(sources[order], minlength=number)
