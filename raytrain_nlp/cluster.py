"""Ray, as the driver needs it: connect or start, is there room, have workers boot while the driver is still busy."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem

_owns_ray = False
_WORKER_ENV = {"TOKENIZERS_PARALLELISM": "false"}


def is_local() -> bool:
    """Will the driver start a Ray of its own (no cluster address is set and none is connected)?"""
    import sys

    ray = sys.modules.get("ray")
    return not os.environ.get("RAY_ADDRESS") and not (ray is not None and ray.is_initialized())


def check_workers(job: TrainJob) -> list[Problem]:
    """On this machine alone: are there as many CPUs and GPUs as the workers ask for?"""
    cpus, wanted = os.cpu_count() or 1, _worker_cpus(job) * job.workers.num_workers
    if not is_local() or wanted <= cpus:
        return []
    what = f"{job.workers.num_workers} workers x {_worker_cpus(job):g} CPU need {wanted:g} CPUs, this machine has {cpus}"
    return [Problem("workers.num_workers", what, "Lower num_workers or resources_per_worker.CPU, or run on a cluster.")]


@contextlib.contextmanager
def connect(job: TrainJob, verbose: bool = False) -> Iterator[None]:
    """A connected Ray with room for the job; a Ray started here ends here."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(job.workers.start_timeout_s))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths of a job mean the driver's directory
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        _check_room(job)
        yield
        return
    global _owns_ray
    local = _owns_ray = is_local()
    quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        # no spot notice can come, and a logical CPU is only a number: the feed's are added to the workers'
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        cpus = math.ceil(job.workers.num_workers * (_worker_cpus(job) + job.data.feed_cpus_per_worker))
        options = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
        ray.init(**options, **quiet, _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False})
    else:
        ray.init(address="auto", **quiet)
    try:
        _check_room(job)
        yield
    finally:
        _owns_ray = False
        ray.shutdown()


def owns_ray() -> bool:
    """Was the connected Ray started by `connect`?"""
    return _owns_ray


def warm_workers(job: TrainJob) -> None:
    """Boot the worker processes and their imports now, while driver and controller are busy.

    Ray gives an actor an idle process of the same job and runtime environment, so the workers of `fit()` find torch,
    transformers and DeepSpeed loaded. Only a matter of time: where no idle process fits, Ray boots a new one.
    """
    import ray

    task = ray.remote(_import_libraries).options(
        num_cpus=_worker_cpus(job), num_gpus=1 if job.workers.use_gpu else 0, runtime_env=process_env(), scheduling_strategy="SPREAD"
    )
    for _ in range(job.workers.num_workers):
        task.remote(job.deepspeed.zero_stage > 0)


def worker_env() -> dict[str, Any]:
    """The runtime environment of the workers, as `RunConfig` takes it."""
    return {"env_vars": dict(_WORKER_ENV)}


def process_env() -> dict[str, Any]:
    """The same, with what Ray Train adds to it."""
    try:
        from ray.train.v2._internal.util import get_env_vars_to_propagate
    except ImportError:  # a later Ray: warm processes are then not reused, nothing else changes
        return worker_env()
    return {"env_vars": {**get_env_vars_to_propagate(), **_WORKER_ENV}}


def map_on_cluster(function: Callable[[dict[str, Any]], dict[str, Any]], items: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """`function` over `items` with Ray Data: in order, results streamed, a bounded number in flight."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(function, num_cpus=1)
    return dataset.iter_rows(prefetch_batches=0)


def _import_libraries(deepspeed: bool) -> None:
    import raytrain_nlp.worker.loader
    import raytrain_nlp.worker.trainer

    if deepspeed:
        import deepspeed as _  # noqa: F401, F811


def _worker_cpus(job: TrainJob) -> float:
    return job.workers.resources_per_worker.get("CPU", 1)


def _check_room(job: TrainJob) -> None:
    """Refuse what would wait for ever: more than the cluster has, or workers that leave the feed no CPU."""
    import ray

    have = ray.cluster_resources()
    per_worker = {**job.workers.resources_per_worker, **({"GPU": job.workers.resources_per_worker.get("GPU", 1)} if job.workers.use_gpu else {})}
    per_worker["CPU"] = _worker_cpus(job) + job.data.feed_cpus_per_worker
    problems = []
    for name, amount in per_worker.items():
        wanted = amount * job.workers.num_workers
        if wanted > have.get(name, 0) + 1e-9:
            extra = f" (with {job.data.feed_cpus_per_worker:g} CPU for each worker's feed)" if name == "CPU" else ""
            what = f"{job.workers.num_workers} workers need {wanted:g} {name}{extra}, the cluster has {have.get(name, 0):g}"
            problems.append(Problem("workers", what, "Lower num_workers or resources_per_worker, or add nodes."))
    if problems:
        raise InputError(problems)
