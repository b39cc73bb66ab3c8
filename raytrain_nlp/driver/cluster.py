"""Ray, as the driver needs it: connect or start, is there room, have workers boot while the driver is still busy."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.devices import WITHOUT_GPU, hidden_gpus
from raytrain_nlp.driver import local_ray
from raytrain_nlp.driver.forkserver import forked_processes
from raytrain_nlp.errors import InputError, Problem, RunError

_owns_ray = False
_abandoned: threading.Thread | None = None
"""Starts or ends a Ray that a refused job no longer needs."""
_SERVICE_PROCESSES = 4
"""Processes beside workers and feed: Ray Train's synchronization, autoscaling and statistics actors, and one to spare."""
_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a job mean the driver's directory
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def is_local() -> bool:
    """Will the driver start a Ray of its own (no cluster address is set and none is connected)?"""
    import sys

    _settle()
    ray = sys.modules.get("ray")
    return not os.environ.get("RAY_ADDRESS") and not (ray is not None and ray.is_initialized())


def check_workers(job: TrainJob) -> list[Problem]:
    """On this machine alone: are there as many CPUs and GPUs as the workers ask for?"""
    cpus, wanted = os.cpu_count() or 1, worker_cpus(job) * job.workers.num_workers
    if not is_local() or wanted <= cpus:
        return []
    what = f"{job.workers.num_workers} workers x {worker_cpus(job):g} CPU need {wanted:g} CPUs, this machine has {cpus}"
    return [Problem("workers.num_workers", what, "Lower num_workers or resources_per_worker.CPU, or run on a cluster.")]


@contextlib.contextmanager
def connect(
    job: TrainJob, verbose: bool = False, runs: int = 1, say: Callable[[str], None] | None = None, stop: threading.Event | None = None
) -> Iterator[None]:
    """A connected Ray with room for the job, or for so many `runs` of it; a Ray started here ends here.

    With `say`, nodes that an autoscaler can start are asked for and waited for, until `stop` is set; without it they count as there.
    """
    import ray

    from raytrain_nlp.driver.room import wait_for_room

    _settle()
    if ray.is_initialized():
        wait_for_room(job, say, stop)
        yield
        return
    global _owns_ray
    local = _owns_ray = is_local()
    quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    settings = {**_SETTINGS, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(job.workers.start_timeout_s)}
    if local:  # idle processes beyond one for each feed end when the rush of the start is over
        settings |= {**local_ray.SETTINGS, "RAY_num_workers_soft_limit": str(job.workers.num_workers * runs)}
    loaded = ["peft"] if job.lora is not None else []
    with local_ray.unsaid(verbose), environment(settings), forked_processes(*loaded) if local and not job.workers.use_gpu else contextlib.nullcontext():
        with _one_line("Ray cannot be started" if local else f"the cluster at {os.environ.get('RAY_ADDRESS', 'auto')} does not answer"):
            if local:
                cpus = math.ceil(runs * job.workers.num_workers * (worker_cpus(job) + job.data.feed_cpus_per_worker))
                # a logical CPU is only a number; Ray boots one idle process for each, and this run needs these
                num_cpus = max(cpus, os.cpu_count() or 1) + _SERVICE_PROCESSES
                # "local": with no address, Ray would try the cluster that a `ray start` of this machine has left written down, alive or not
                with local_ray.lean(verbose):
                    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
            else:
                ray.init(address="auto", **_without_gpu(job), **quiet)
        try:
            wait_for_room(job, say, stop, fixed=local)
            yield
        finally:
            _owns_ray = False
            ray.shutdown()


def _without_gpu(job: TrainJob) -> dict[str, Any]:
    """What has all processes of a cluster that work for a job without GPUs see none: those of a Ray started here inherit it."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    hidden = {name: value for name, value in WITHOUT_GPU.items() if name not in (given.get("env_vars") or {})}  # `ray job submit` has given it
    return {} if job.workers.use_gpu else {"runtime_env": {"env_vars": hidden}}


@contextlib.contextmanager
def connect_ahead(
    job: TrainJob, verbose: bool, runs: int = 1, say: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Ray started in a thread, with warm workers, while the driver prepares; yields a function that waits until it is there.

    Who is refused a job does not wait until that Ray has started and ended again.
    """
    global _abandoned
    ready, done = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with connect(job, verbose, runs, say, done):
                if not done.is_set():  # the driver has not refused the job meanwhile
                    boot_processes(job)
                ready.set()
                done.wait()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="ray", daemon=True)

    def wait() -> None:
        ready.wait()
        if failure:
            raise failure[0]

    try:
        with hidden_gpus(job.workers.use_gpu):  # in this thread: the environment is the whole process's
            thread.start()
            yield wait
    except InputError:
        _abandoned = thread
        raise
    finally:
        done.set()
        if _abandoned is not thread:
            thread.join()


def is_abandoning() -> bool:
    """Is there still a Ray that nobody needs? A process that ends now takes it along: Ray's own processes die with their parent."""
    return _abandoned is not None and _abandoned.is_alive()


def _settle() -> None:
    if is_abandoning() and threading.current_thread() is not _abandoned:
        _abandoned.join()


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Ray raises plain `Exception` where a start takes too long, and `ConnectionError` where nobody is there."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise RunError(f"{what}: {reason}. Try again when the machine is less busy, or look into Ray's logs.") from error


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for Ray and Ray Train while inside; those the user has set stay."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def owns_ray() -> bool:
    """Was the connected Ray started by `connect`?"""
    return _owns_ray


def boot_processes(job: TrainJob) -> None:
    """Boot what would otherwise boot later, one after the other: two service actors of Ray, and the feed's processes.

    Only a matter of time: they get ready while the driver still prepares. A Ray without them changes nothing else.
    """
    import ray

    warm = ray.remote(_import_feed).options(num_cpus=job.data.feed_cpus_per_worker, scheduling_strategy="SPREAD")
    for _ in range(job.workers.num_workers):
        warm.remote()
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_autoscaling_coordinator()
        get_or_create_stats_actor()


def _import_feed() -> None:
    import time

    import raytrain_nlp.data.feed  # noqa: F401 - to have it loaded

    time.sleep(0.2)  # long enough that the other tasks get processes of their own


def worker_cpus(job: TrainJob) -> float:
    return job.workers.resources_per_worker.get("CPU", 1)
