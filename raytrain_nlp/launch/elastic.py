"""Elastic training: fewer workers after a node is lost, more when there is room again, always the same global batches.

A thread of the driver polls the nodes of the cluster while a group of workers runs. An error in it (the head does not
answer, Ray has changed an interface) is reported in a line, once until it is gone; the group goes on as it is, and the
thread keeps polling. It imports nothing that the driver has not loaded before.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.cluster.capacity import wait_for_room
from raytrain_nlp.cluster.resources import bundles_of, free_nodes, left_over, living_nodes
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError
from raytrain_nlp.host.threads import looking
from raytrain_nlp.launch.fit import Fit, goes_on
from raytrain_nlp.launch.group_errors import explain, failure_told, less_memory
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.stop_request import ask_to_move
from raytrain_nlp.tracking.events import read_events

_POLL_S = 2.0


class ElasticFit(Fit):
    """Runs one group of workers after another, each as large as the cluster has room for.

    Ray Train can resize a group too, but ends it in the middle of a step. Here a group that is to grow commits a
    checkpoint first.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(say=say)

    def __call__(self, job: TrainJob, spec: Any, paths: RunPaths) -> dict[str, Any]:
        import ray.train

        from raytrain_nlp.launch.failure_events import FailureEvents

        failures, callbacks = 0, [FailureEvents(paths)]
        while True:
            count = self._size(job)
            workers = job.workers.model_copy(update={"max_failures": 0, "num_workers": count})
            replaced = threading.Event()
            try:
                with self._watched(job, count, paths, replaced):
                    outcome = self.run(job.model_copy(update={"workers": workers}), {"spec": spec}, paths, callbacks)
            except (ray.train.TrainingFailedError, ray.exceptions.RayActorError, RunError) as error:
                if replaced.is_set():
                    continue
                failures += 1
                told = explain(error, paths, self._todo, functools.partial(less_memory, job, spec))
                if failure_told(paths) or failures > job.workers.max_failures >= 0:
                    raise told from error
                self._say(
                    f"failure {failures}: {str(told).split(' Logs of all ranks')[0]} Going on with the workers there "
                    f"is room for"
                )
                continue
            if not goes_on(outcome, paths):
                return outcome

    def _size(self, job: TrainJob) -> int:
        """The number of workers that fit on the nodes; waits until `min_workers` do."""
        while True:
            if count := _fitting(job, living_nodes()):
                return count
            wait_for_room(job, self._say, patient=True)

    @contextlib.contextmanager
    def _watched(self, job: TrainJob, count: int, paths: RunPaths, replaced: threading.Event) -> Iterator[None]:
        """Poll the nodes while inside. A group of `count` workers that has not begun to train and no longer fits is
        aborted, and `replaced` is set; one that could be larger is asked to commit a checkpoint and end.
        """
        offset = paths.events.stat().st_size if paths.events.exists() else 0

        started: float | None = None

        def look() -> bool:
            nonlocal started
            if started is None:
                started = (
                    time.monotonic()
                    if any(event["kind"] in ("start", "resume") for event, _ in read_events(paths.events, offset))
                    else None
                )
                if started is None and _fitting(job, living_nodes()) < count and not over.is_set():
                    replaced.set()
                    self.abort()
                    self.aborted.clear()  # this group only, not the run
            elif (
                time.monotonic() - started > job.workers.resize_interval_s
                and (more := _growing(job, count))
                and not over.is_set()
            ):
                ask_to_move(paths, f"there is room for {more} workers")
                return True
            return False

        def tell(reason: str) -> None:
            self._say(
                f"the number of workers stays as it is for now: the cluster's nodes cannot be seen ({reason}); it is "
                f"tried again."
            )

        with looking("elastic", look, _POLL_S, tell) as over:
            yield


def _fitting(job: TrainJob, nodes: list[dict[str, float]]) -> int:
    """The largest number of workers, from `num_workers` down to `min_workers`, that fits on `nodes`; 0 where none does.

    Args:
        nodes: resources of each node, by name.
    """
    sizes = range(job.workers.num_workers, (job.workers.min_workers or job.workers.num_workers) - 1, -1)
    return next((count for count in sizes if not left_over(bundles_of(job.at_size(count)), nodes)), 0)


def _growing(job: TrainJob, count: int) -> int:
    """The largest number of workers that could replace the `count` running ones, with the resources that are free now
    besides theirs; 0 where none can be added.
    """
    here = bundles_of(job.at_size(count))
    nodes = free_nodes()
    for more in range(job.workers.num_workers, count, -1):
        added = list(bundles_of(job.at_size(more)))
        for bundle in here:
            added.remove(bundle)
        if not left_over(added, nodes):
            return more
    return 0
