"""The Ray Data pipeline of a prediction: tasks on CPUs read and tokenize pieces of files, ahead of the actors that hold
the model and write the parts.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raytrain_nlp.cluster.session import owns_ray
from raytrain_nlp.errors import RunError
from raytrain_nlp.host.devices import WITHOUT_GPU
from raytrain_nlp.prediction.parts import Layout
from raytrain_nlp.run.observer import Observer

if TYPE_CHECKING:
    from raytrain_nlp.config import TrainJob
    from raytrain_nlp.data.reading.sources import SourceFile
    from raytrain_nlp.prediction.batches import PredictSpec

_AT_ONCE, _AHEAD = 2, 4
"""Chunks on which an actor works at a time (one on its device, one being written), and chunks that are sent to it at a
time, those that wait included.
"""


def make_parts(
    spec: PredictSpec, files: list[SourceFile], layout: Layout, done: list[str], verbose: bool, observer: Observer
) -> float | None:
    """Make the parts that are missing.

    Args:
        done: names of the parts that exist.

    Returns:
        Rows per second (see `Rate`); None if no part was missing.

    Raises:
        RunError: a predictor failed. Parts that are finished stay.
    """
    from ray.exceptions import RayError

    from raytrain_nlp.launch.parallel_map import data_context

    rate = Rate()
    with data_context(verbose):
        results = _results(spec, files, layout, done)
        observer.stage("starting the predictors")
        try:
            for result in results:
                rate.add(result["rows"], result["seconds"])
                per_second = f"  {rate.per_second:,.0f} rows/s" if rate.per_second else ""
                observer.stage(f"{rate.rows:,} rows{per_second}")
        except RayError as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1].removeprefix(
                "raytrain_nlp.errors.RunError: "
            )
            raise RunError(
                f"a predictor failed: {reason[:1000].rstrip('.')}. What is done is kept; run it again to continue."
            ) from error
    return rate.per_second


class Rate:
    """Rows per second of all predictors together. Seconds are measured in the predictors, as their results reach the
    driver in bursts.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Count a finished part.

        Args:
            rows: rows of the part.
            seconds: between the start of its predictor's first part and the end of this one.
        """
        self.rows += rows
        self._seconds = max(self._seconds, seconds)

    @property
    def per_second(self) -> float | None:
        """Rows so far by the seconds of the predictor that has worked longest; None before the first part."""
        return self.rows / self._seconds if self._seconds > 0 else None


def _results(spec: PredictSpec, files: list[SourceFile], layout: Layout, done: list[str]) -> Iterator[dict[str, Any]]:
    """The predictors' result for each part, as they come in: `part`, `rows` and `seconds`."""
    import ray.data

    from raytrain_nlp.prediction.actor import Predictor
    from raytrain_nlp.prediction.batches import read_chunks

    items, workers = _items(files, layout, done), spec.job.workers
    pieces = ray.data.from_items(items, override_num_blocks=len(items))
    # `context` is this dataset's own copy. With blocks this small each chunk is a block by itself, which goes to the
    # next free actor as soon as it is read
    pieces.context.target_max_block_size = 1
    chunks = pieces.flat_map(functools.partial(read_chunks, spec=spec), num_cpus=spec.job.data.feed_cpus_per_worker)
    predicted = chunks.map_batches(
        Predictor,
        fn_constructor_args=(spec,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=workers.num_workers,
            max_tasks_in_flight_per_actor=_AHEAD,
            max_concurrent_calls_per_actor=_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        **_resources(spec.job),
    )
    return iter(predicted.iter_rows())


def _items(files: list[SourceFile], layout: Layout, done: list[str]) -> list[dict[str, Any]]:
    """The pieces of the files, each with its number and the names of its parts that exist."""
    from raytrain_nlp.data.reading.sources import split_file
    from raytrain_nlp.prediction.files import piece_of_part

    there: dict[int, list[str]] = defaultdict(list)
    for name in done:
        there[piece_of_part(name)].append(name)
    pieces = (asdict(piece) for file in files for piece in split_file(file, layout.piece_bytes))
    return [{"number": number, "piece": piece, "done": there[number]} for number, piece in enumerate(pieces)]


def _resources(job: TrainJob) -> dict[str, Any]:
    """The resources of a predictor, as arguments of `map_batches`."""
    each = job.workers.resources_per_worker
    taken: dict[str, Any] = {"num_cpus": each.get("CPU", 1)}
    if job.workers.use_gpu:
        return {**taken, "num_gpus": each.get("GPU", 1)}
    return taken if owns_ray() else {**taken, "runtime_env": {"env_vars": WITHOUT_GPU}}
