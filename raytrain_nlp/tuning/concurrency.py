"""How many trials run at once, from the resources that the cluster has or could add and those that a trial needs. So no
trial holds workers while it waits for resources that another trial holds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

from raytrain_nlp.cluster import gpus
from raytrain_nlp.cluster.resources import Resources, need_of, worker_of
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem

_SLACK = 1e-6


def plan_concurrency(jobs: Iterable[TrainJob], nodes: Sequence[Resources], most: int | None) -> int:
    """The number of trials that run at a time.

    Args:
        jobs: the jobs at the ends of the search space; the result fits the largest.
        nodes: resources of each node, by name.
        most: the user's `max_concurrent_trials`; None: no limit.

    Raises:
        InputError: not even one trial can ever be placed.
    """
    trials = min(_fits(job, nodes) for job in jobs)
    return min(trials, most or trials)


def plan_local(job: TrainJob, most: int | None) -> int:
    """`plan_concurrency` for a local Ray that is started for this sweep. It is given as many logical CPUs as the trials
    ask for, so the limit is the machine's cores (without `most`) and its GPUs.
    """
    busy = most or max(int((os.cpu_count() or 1) // max(worker_of(job)["CPU"] * job.workers.num_workers, 1)), 1)
    each = worker_of(job).get("GPU", 0) * job.workers.num_workers
    return max(min(busy, int(len(gpus.local_gpus()) // each)), 1) if each else busy


def _fits(job: TrainJob, nodes: Sequence[Resources]) -> int:
    need, worker = need_of(job), worker_of(job)
    for name, amount in need.items():
        have = sum(node.get(name, 0) for node in nodes)
        if amount > have + _SLACK:
            extra = f" (with {job.data.feed_cpus_per_worker:g} CPU for each worker's feed)" if name == "CPU" else ""
            what = (
                f"a trial of {job.workers.num_workers} workers needs {amount:g} {name}{extra}, the cluster can give "
                f"{have:g}"
            )
            raise InputError(Problem("job.workers", what, "Lower num_workers or resources_per_worker, or add nodes."))
    places = sum(
        min(math.floor((node.get(name, 0) + _SLACK) / amount) for name, amount in worker.items() if amount)
        for node in nodes
    )
    if places < job.workers.num_workers:
        what = f"{job.workers.num_workers} workers x {worker} do not fit on the nodes, which have places for {places}"
        raise InputError(Problem("job.workers", what, "Lower resources_per_worker, or add larger nodes."))
    total = min(
        math.floor((sum(node.get(name, 0) for node in nodes) + _SLACK) / amount)
        for name, amount in need.items()
        if amount
    )
    return min(total, places // job.workers.num_workers)
