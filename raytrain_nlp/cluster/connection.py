"""The driver's connection to Ray: started ahead, made from the main thread, with workers that boot while the driver is
still busy.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from raytrain_nlp.cluster import local_ray
from raytrain_nlp.cluster.local_ray import LocalRay
from raytrain_nlp.cluster.ray_head import HeadSettings
from raytrain_nlp.cluster.session import environment, is_connected, is_local, set_owned, worker_cpus
from raytrain_nlp.compat.ray import boot_service_actors, errors_unsaid
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError
from raytrain_nlp.host import signals
from raytrain_nlp.host.devices import WITHOUT_GPU, hidden_gpus
from raytrain_nlp.host.sockets import ray_folder

_SERVICE_PROCESSES = 4
"""Processes beside workers and feed: Ray Train's synchronization, autoscaling and statistics actors, and one to
spare.
"""
_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a job mean the driver's directory
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray Data would ask a Prometheus at this machine's port 9090, whoever answers there
    "RAY_DATA_USAGE_DISABLED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Connection:
    """The driver's way to its Ray, started by `start` or by the first call. Everything happens in the thread that
    calls, which is the main one: no import of Ray's meets another that is half done."""

    def __init__(
        self, job: TrainJob, verbose: bool = False, runs: int = 1, say: Callable[[str], None] | None = None
    ) -> None:
        self._job, self._verbose, self._runs, self._say = job, verbose, runs, say
        self._stack = contextlib.ExitStack()
        self._local: LocalRay | None = None
        self._connected = self._has_room = False
        self._asked: Any = None
        """Nodes that an autoscaler was asked for."""

    def start(self) -> None:
        """Start a Ray of the driver's own, beside whatever the driver goes on with; a cluster is connected to at once,
        and asked for its nodes.
        """
        self._stack.enter_context(hidden_gpus(self._job.workers.use_gpu))
        if is_connected():
            self._connected = True
            return
        local = is_local()
        settings = {**_SETTINGS, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self._job.workers.start_timeout_s)}
        if local:  # idle processes beyond one for each feed end when the rush of the start is over
            settings |= {
                **local_ray.SETTINGS,
                "RAY_num_workers_soft_limit": str(self._job.workers.num_workers * self._runs),
            }
        self._stack.enter_context(environment(settings))
        if local:
            if (folder := ray_folder()) and self._say is not None:
                self._say(
                    f"TMPDIR is too long for the names of Ray's sockets: there it is called {os.path.dirname(folder)}"
                )
            forked, use_gpu = ["peft"] if self._job.lora is not None else [], self._job.workers.use_gpu
            self._local = LocalRay(HeadSettings(self._logical_cpus(), forked, use_gpu, self._verbose, folder))
            self._stack.callback(self._local.end)
            self._stack.enter_context(signals.at_once(self._local.kill))
        else:
            self._connect()

    def connect_if_up(self) -> None:
        """Connect to a Ray that was started, unless that would have to wait: workers then boot while the driver is
        still busy.
        """
        if not self._connected and self._local is not None and self._local.is_up():
            self._connect()

    def __call__(self) -> None:
        """Return when Ray is connected and its nodes hold the job."""
        if not self._connected and self._local is None:
            self.start()
        if not self._connected:
            self._connect()
        if not self._has_room:
            from raytrain_nlp.cluster.capacity import wait_for_room

            wait_for_room(self._job, self._say, fixed=self._local is not None, asked=self._asked)
            self._has_room = True
            if self._local is None:
                boot_processes(self._job)  # earlier an autoscaler would start nodes for them, too

    def close(self) -> None:
        """Disconnect; a Ray that was started here ends, with all its processes."""
        self._stack.close()

    def _connect(self) -> None:
        import ray

        self._stack.enter_context(errors_unsaid(self._verbose))
        quiet: dict[str, Any] = {} if self._verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._local:
            local_ray.connect(self._local.address(), **quiet)
            set_owned(True)
        else:
            with _one_line(f"the cluster at {os.environ.get('RAY_ADDRESS', 'auto')} does not answer"):
                ray.init(address="auto", **_without_gpu(self._job), **quiet)
        signals.keep_handlers()
        self._connected = True
        self._stack.callback(_disconnect)
        if self._local is None:
            from raytrain_nlp.cluster.capacity import ask_for_room

            self._asked = ask_for_room(self._job) if self._say is not None else None
        else:
            boot_processes(self._job)

    def _logical_cpus(self) -> int:
        """A logical CPU is only a number; Ray boots one idle process for each, and this run needs these."""
        workers = self._job.workers.num_workers
        cpus = math.ceil(self._runs * workers * (worker_cpus(self._job) + self._job.data.feed_cpus_per_worker))
        return max(cpus, os.cpu_count() or 1) + _SERVICE_PROCESSES


@contextlib.contextmanager
def connect_ahead(
    job: TrainJob, verbose: bool = False, runs: int = 1, say: Callable[[str], None] | None = None
) -> Iterator[Connection]:
    """Ray started beside the driver, for the job or for so many `runs` of it; call what is yielded to wait until it is
    there and holds the job.

    With `say`, nodes that an autoscaler can start are asked for and waited for; without it they count as there. Who is
    refused a job does not wait until that Ray has started.
    """
    connection = Connection(job, verbose, runs, say)
    try:
        connection.start()
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def connected_briefly() -> Iterator[None]:
    """The cluster, to be asked something before a job that it may change is settled."""
    if is_connected():
        yield
        return
    import ray

    with _one_line(f"the cluster at {os.environ.get('RAY_ADDRESS', 'auto')} does not answer"):
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    signals.keep_handlers()
    try:
        yield
    finally:
        ray.shutdown()


def _without_gpu(job: TrainJob) -> dict[str, Any]:
    """What has all processes of a cluster that work for a job without GPUs see none: those of a Ray started here
    inherit it.
    """
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    hidden = {
        name: value for name, value in WITHOUT_GPU.items() if name not in (given.get("env_vars") or {})
    }  # `ray job submit` has given it
    return {} if job.workers.use_gpu else {"runtime_env": {"env_vars": hidden}}


def _disconnect() -> None:
    import ray

    set_owned(False)
    ray.shutdown()


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Ray raises plain `Exception` where a start takes too long, and `ConnectionError` where nobody is there."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise RunError(
            f"{what}: {reason}. Try again when the machine is less busy, or look into Ray's logs."
        ) from error


def boot_processes(job: TrainJob) -> None:
    """Boot what would otherwise boot later, one after the other: two service actors of Ray, and the feed's processes.

    Only a matter of time: they get ready while the driver still prepares.
    """
    import ray

    warm = ray.remote(_import_feed).options(num_cpus=job.data.feed_cpus_per_worker, scheduling_strategy="SPREAD")
    for _ in range(job.workers.num_workers):
        warm.remote()
    boot_service_actors()


def _import_feed() -> None:
    import time

    import raytrain_nlp.data.feed  # noqa: F401 - to have it loaded

    time.sleep(0.2)  # long enough that the other tasks get processes of their own
