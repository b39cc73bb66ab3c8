"""Parallel maps on the cluster: with Ray Data before training, and on actors while training goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from raytrain_nlp.cluster.session import owns_ray, worker_cpus
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError

_MOST_MAPPERS = 32
MapItems = Callable[[Callable[[Any], Any], "list[Any]"], "Iterable[Any]"]


def map_on_cluster(
    function: Callable[[dict[str, Any]], dict[str, Any]], items: list[dict[str, Any]], verbose: bool = False
) -> Iterator[dict[str, Any]]:
    """`function` over `items` with Ray Data: in order, results streamed, a bounded number in flight."""
    import ray.data

    with data_context(verbose):
        yield from ray.data.from_items(items, override_num_blocks=len(items)).map(function, num_cpus=1).iter_rows()


@contextlib.contextmanager
def data_context(verbose: bool) -> Iterator[None]:
    """Configure Ray Data while inside: results keep the order of their inputs, and it prints nothing unless `verbose`.
    The process's own settings are restored afterwards.
    """
    import ray.data

    context, logger = ray.data.DataContext.get_current().copy(), logging.getLogger("ray.data")
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1
    level = logger.level
    with warnings.catch_warnings():
        if not verbose:
            logger.setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=r"ray\.data")  # advice on a pipeline that is not the user's
        try:
            with ray.data.DataContext.current(context):
                yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def map_beside_training(job: TrainJob, stop: threading.Event) -> Iterator[MapItems]:
    """Yields a `map(function, items)` that runs on Ray actors while training goes on; results come in order.

    There are as many actors as there are CPUs that workers and their feeds have not reserved (at least one, at most
    32), at lower priority (nice 10), so that they yield to training where they share cores. The iterator of results
    raises `RunError` once `stop` is set.
    """
    import ray
    from ray.util import ActorPool

    class Mapper:
        def __init__(self) -> None:
            os.nice(10)

        def run(self, function: Callable[[Any], Any], item: Any) -> Any:
            return function(item)

    cpus = (os.cpu_count() or 1) if owns_ray() else ray.cluster_resources().get("CPU", 0)
    count = int(
        max(1, min(cpus - job.workers.num_workers * (worker_cpus(job) + job.data.feed_cpus_per_worker), _MOST_MAPPERS))
    )
    actor = ray.remote(Mapper).options(num_cpus=job.data.feed_cpus_per_worker, max_restarts=-1, max_task_retries=2)
    actors = [actor.remote() for _ in range(count)]
    pool = ActorPool(actors)

    def results(function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
        for item in items:
            pool.submit(lambda mapper, item: mapper.run.remote(function, item), item)
        while pool.has_next():
            if stop.is_set():
                raise RunError("stopped")
            with contextlib.suppress(TimeoutError):
                yield pool.get_next(timeout=1)

    try:
        yield results
    finally:
        for mapper in actors:
            ray.kill(mapper)
