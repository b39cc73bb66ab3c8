"""The driver's connection to Ray. A Ray of the driver's own is started while the driver is still busy with other
things, and so are the processes of its workers; the connection itself is made in the main thread.
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
from raytrain_nlp.cluster.access import open_to_others
from raytrain_nlp.cluster.local_ray import LocalRay
from raytrain_nlp.cluster.ray_head import HeadSettings
from raytrain_nlp.cluster.session import environment, is_connected, is_local, set_owned, worker_cpus
from raytrain_nlp.compat.ray import boot_service_actors, raylet_errors_hidden
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import RunError
from raytrain_nlp.host import signals
from raytrain_nlp.host.devices import WITHOUT_GPU, hidden_gpus
from raytrain_nlp.host.once import once
from raytrain_nlp.host.sockets import ray_folder

_SERVICE_PROCESSES = 4
"""Processes besides workers and feed: Ray Train's synchronization actor, Ray Data's autoscaling and statistics actors,
and one to spare."""
_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a job are relative to the driver's directory
    # otherwise Ray Data asks whatever listens at port 9090 of this machine, as if it were Prometheus
    "RAY_DATA_USAGE_DISABLED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

_OWN_RAY = {"RAY_TRAIN_METRICS_ENABLED": "0"}
"""Settings for a Ray of the driver's own, which has no dashboard."""
_CLUSTER = {"RAY_TRAIN_METRICS_ENABLED": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
"""Settings for a cluster, so that its dashboard shows the run under "Train". Ray keeps the state of all runs in one
actor, which asks for no CPU.
"""


class Connection:
    """The driver's connection to its Ray, opened by `start` or by the first call. Everything happens in the calling
    thread, which is the main one, so that imports of Ray never run in two threads.

    Args:
        verbose: show Ray's own output.
        runs: how many runs of the job take place at a time.
        say: called with a line of text while nodes are waited for; None: do not wait for nodes that an autoscaler can
            start.
    """

    def __init__(
        self, job: TrainJob, verbose: bool = False, runs: int = 1, say: Callable[[str], None] | None = None
    ) -> None:
        self._job, self._verbose, self._runs, self._say = job, verbose, runs, say
        self._stack = contextlib.ExitStack()
        self._local: LocalRay | None = None
        self._connected = self._has_room = False
        self._asked: Any = None
        """Placement group by which an autoscaler was asked for nodes."""

    def start(self) -> None:
        """Start a Ray of the driver's own, without waiting for it; or connect to the cluster and ask its autoscaler for
        nodes.
        """
        self._stack.enter_context(hidden_gpus(self._job.workers.use_gpu))
        if is_connected():
            self._connected = True
            return
        local = is_local()
        settings = {**_SETTINGS, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self._job.workers.start_timeout_s)}
        settings |= _OWN_RAY if local else _CLUSTER
        if local:  # after the start, idle processes beyond one for each feed end
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
        """Connect to a Ray that `start` has started, where it is ready, so that the processes of workers start while
        the driver is still busy.
        """
        if not self._connected and self._local is not None and self._local.is_up():
            self._connect()

    def __call__(self) -> None:
        """Return when the driver is connected and the cluster has room for the job."""
        if not self._connected and self._local is None:
            self.start()
        if not self._connected:
            self._connect()
        if not self._has_room:
            from raytrain_nlp.cluster.capacity import wait_for_room

            wait_for_room(self._job, self._say, fixed=self._local is not None, asked=self._asked)
            self._has_room = True
            if self._local is None:
                boot_processes(self._job)  # not earlier: an autoscaler would start nodes for them

    def close(self) -> None:
        """Disconnect. A Ray that was started here ends, with all its processes."""
        self._stack.close()

    def _connect(self) -> None:
        import ray

        self._stack.enter_context(raylet_errors_hidden(self._verbose))
        quiet: dict[str, Any] = {} if self._verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._local:
            local_ray.connect(self._local.address(), **quiet)
            set_owned(True)
        else:
            with _one_line(f"the cluster at {os.environ.get('RAY_ADDRESS', 'auto')} does not answer"):
                ray.init(address="auto", **_without_gpu(self._job), **quiet)
            if told := open_to_others(os.environ.get("RAY_ADDRESS")):
                once(told)
        signals.keep_handlers()
        self._connected = True
        self._stack.callback(_disconnect)
        if self._local is None:
            from raytrain_nlp.cluster.capacity import ask_for_room

            self._asked = ask_for_room(self._job) if self._say is not None else None
        else:
            boot_processes(self._job)

    def _logical_cpus(self) -> int:
        """Logical CPUs of a Ray of the driver's own. They are only numbers; Ray starts an idle process for each, and
        this run needs these.
        """
        workers = self._job.workers.num_workers
        cpus = math.ceil(self._runs * workers * (worker_cpus(self._job) + self._job.data.feed_cpus_per_worker))
        return max(cpus, os.cpu_count() or 1) + _SERVICE_PROCESSES


@contextlib.contextmanager
def connect_ahead(
    job: TrainJob, verbose: bool = False, runs: int = 1, say: Callable[[str], None] | None = None
) -> Iterator[Connection]:
    """Start or connect to Ray ahead of its use. The `Connection` is called to wait until Ray is there and has room for
    the job. Leaving the block does not wait for a Ray that is still starting, so that a job can be refused at once.

    The arguments are those of `Connection`.
    """
    connection = Connection(job, verbose, runs, say)
    try:
        connection.start()
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def connected_briefly() -> Iterator[None]:
    """While inside, connected to the cluster, to ask about its nodes before a job is settled."""
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
    """Options of `ray.init` that hide GPUs from all processes of a job without GPUs in a cluster. Those of a Ray that
    was started here inherit the driver's environment.
    """
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    hidden = {
        name: value for name, value in WITHOUT_GPU.items() if name not in (given.get("env_vars") or {})
    }  # `ray job submit` has set the others
    return {} if job.workers.use_gpu else {"runtime_env": {"env_vars": hidden}}


def _disconnect() -> None:
    import ray

    set_owned(False)
    ray.shutdown()


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Raise `RunError` for what `ray.init` raises: plain `Exception` where a start takes too long, `ConnectionError`
    where no cluster answers.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise RunError(
            f"{what}: {reason}. Try again when the machine is less busy, or look into Ray's logs."
        ) from error


def boot_processes(job: TrainJob) -> None:
    """Start processes that would otherwise start later, one after another: two service actors of Ray, and those of the
    feed. This only saves time: they start while the driver still prepares data.
    """
    import ray

    warm = ray.remote(_import_feed).options(num_cpus=job.data.feed_cpus_per_worker, scheduling_strategy="SPREAD")
    for _ in range(job.workers.num_workers):
        warm.remote()
    boot_service_actors()


def _import_feed() -> None:
    import time

    import raytrain_nlp.data.feed  # noqa: F401 - only to load it

    time.sleep(0.2)  # long enough that each remote function gets a process of its own
