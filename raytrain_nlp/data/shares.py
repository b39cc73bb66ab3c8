"""The shares of a mixture, from a job's sources and the number of rows that each of them has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.mixture import Mixture, apportion
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.errors import InputError, Problem


def find_ends(store: TokenStore, sources: dict[str, list[str]], chosen: np.ndarray | None = None) -> list[int]:
    """The position after the last row of each source, in a store whose files are in the order of the sources.

    Args:
        sources: name of a source -> paths of its files.
        chosen: ids of the rows that are used, int64 [rows], ascending; positions are then counted among these.

    Raises:
        InputError: a source has no good row.
    """
    owner = {path: name for name, paths in sources.items() for path in paths}
    rows = dict.fromkeys(sources, 0)
    for shard in store.manifest["shards"]:
        rows[owner[shard["source"]]] += shard["rows"]
    ends: list[int] = list(itertools.accumulate(rows.values()))
    if chosen is not None:
        ends = [int(np.searchsorted(chosen, end)) for end in ends]
    counts = [stop - start for start, stop in itertools.pairwise([0, *ends])]
    if empty := [name for name, count in zip(rows, counts, strict=True) if not count]:
        raise InputError(Problem("data.train", f"has no row for {', '.join(empty)}", "Give files with rows."))
    return ends


def build_mixture(job: TrainJob, names: list[str], ends: list[int]) -> Mixture:
    """The mixture of a job's sources.

    Args:
        names: names of the sources.
        ends: position after the last row of each source; after its last block where the task packs rows.

    Raises:
        InputError: a source has no row (or block).
    """
    rows = [end - start for start, end in itertools.pairwise([0, *ends])]
    if empty := [name for name, count in zip(names, rows, strict=True) if not count]:
        raise InputError(Problem("data.train", f"has not two tokens for {', '.join(empty)}", "Give files with text."))
    return Mixture(tuple(names), tuple(ends), tuple(map(tuple, _stretches(job, names, rows))))


def _stretches(job: TrainJob, names: list[str], rows: list[int]) -> list[list[int]]:
    """Number of rows of each source in each stretch of an epoch."""
    sources, mixture = job.data.train_sources(), job.data.mixture
    if mixture.curriculum:
        size, most = job.global_batch_size or 1, job.arguments()["max_steps"]
        ends = [stage.until_step or most for stage in mixture.curriculum]
        steps = [end - start for start, end in itertools.pairwise([0, *ends])]
        shares = [[stage.weights.get(name, 0.0) for name in names] for stage in mixture.curriculum]
        return [apportion(weights, count * size) for weights, count in zip(shares, steps, strict=True)]
    if mixture.weights:
        return [apportion([mixture.weights[name] for name in names], sum(rows))]
    if mixture.temperature:
        return [apportion([count ** (1 / mixture.temperature) for count in rows], sum(rows))]
    if sources[0].weight is not None:
        return [apportion([source.weight or 0 for source in sources], sum(rows))]
    if sources[0].rows is not None:
        return [[source.rows or 0 for source in sources]]
    return [[max(round(count * (source.epochs or 1)), 1) for count, source in zip(rows, sources, strict=True)]]


def tell_mixture(mixture: Mixture, epochs: float) -> Iterator[str]:
    """A sentence for each source: its number of rows, its share, and how often each row is seen in so many epochs."""
    taken = mixture.rows_per_epoch
    for name, rows, count in zip(mixture.names, mixture.rows, taken, strict=True):
        seen = count * epochs / rows
        often = f"each is seen {seen:.2f} times" if seen >= 1 else f"{seen:.1%} of them are seen"
        yield f"data.train: {name}: {rows:,} rows, {count / sum(taken):.2%} of what is trained on; {often}."
