"""Whether the driver starts a Ray of its own, whether this machine then has what the workers need, and the environment
that Ray reads.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from raytrain_nlp.cluster.gpus import check_gpus
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import Problem

_owns_ray = False


def is_local() -> bool:
    """Will the driver start a Ray of its own? It does where no cluster address is set and no Ray is connected."""
    return not os.environ.get("RAY_ADDRESS") and not is_connected()


def check_workers(job: TrainJob) -> list[Problem]:
    """Where the driver starts a Ray of its own: does this machine lack CPUs or GPUs for the workers, or can its GPUs
    not compute as the job asks? Empty for a cluster.
    """
    if not is_local():
        return []
    cpus, wanted = os.cpu_count() or 1, worker_cpus(job) * job.workers.num_workers
    problems = check_gpus(job) if job.workers.use_gpu else []
    if wanted > cpus:
        what = (
            f"{job.workers.num_workers} workers x {worker_cpus(job):g} CPU need {wanted:g} CPUs, this machine has "
            f"{cpus}"
        )
        problems.append(
            Problem("workers.num_workers", what, "Lower num_workers or resources_per_worker.CPU, or run on a cluster.")
        )
    return problems


def is_connected() -> bool:
    """Is this process connected to a Ray? Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """While inside, these environment variables are set for Ray and Ray Train, except for those that the user
    has set.
    """
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def owns_ray() -> bool:
    """Was the connected Ray started by this driver?"""
    return _owns_ray


def set_owned(owned: bool) -> None:
    """Note whether the connected Ray was started by this driver; called when the driver connects and disconnects."""
    global _owns_ray
    _owns_ray = owned


def worker_cpus(job: TrainJob) -> float:
    """Logical CPUs that one worker reserves."""
    return job.workers.resources_per_worker.get("CPU", 1)
