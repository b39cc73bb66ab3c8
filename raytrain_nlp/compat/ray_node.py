"""A Ray's head as a process of this package starts it. `ray.init` would start it in the driver, with processes that
nobody needs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_START_S = 120.0
"""How long a raylet may take to start. Ray itself gives it 30 s, however busy the machine is."""


def empty_node() -> Any:
    """A node of Ray's, not started yet: `start_node` starts it, `end_node` ends what there is of it, also where it
    failed half way.

    Without what the Ray of one driver on one machine has no use for: dashboard, autoscaler and, unless its output is
    wanted, what carries it to the driver (ranks have log files of their own). Each is a process that takes seconds to
    start.
    """
    from ray import _raylet as with_stub
    from ray._private.node import Node

    _raylet: Any = with_stub  # Ray's stub of this module leaves most names out

    class LeanNode(Node):
        def start_api_server(self, **arguments: Any) -> None:
            pass

        def start_raylet(self, *arguments: Any, **options: Any) -> None:
            """A raylet reads the ports of its agents from files that they write, and aborts where that takes more than
            15 s, as on a busy machine.
            """
            ports = {
                _raylet.METRICS_AGENT_PORT_NAME: self._ray_params.metrics_agent_port,
                _raylet.METRICS_EXPORT_PORT_NAME: self._ray_params.metrics_export_port,
                _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME: self._ray_params.dashboard_agent_listen_port,
                _raylet.RUNTIME_ENV_AGENT_PORT_NAME: self._ray_params.runtime_env_agent_port,
            }
            for name, port in ports.items():
                _raylet.persist_port(self._session_dir, self._node_id, name, port)
            super().start_raylet(*arguments, **options)

    return LeanNode.__new__(LeanNode)


AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Ray's parameters for the ports of a raylet's agents."""


def start_node(node: Any, num_cpus: int, log_monitor: bool, folder: str | None, agent_ports: dict[str, int]) -> None:
    """GCS and raylet, as `ray.init` starts them; returns when they are up. Raises what Ray raises, plain `Exception`.

    Args:
        node: of `empty_node`.
        log_monitor: is the output of its processes to reach the driver?
        folder: where its files are to be; None: where Ray has them by itself.
        agent_ports: free ports by the names of `AGENT_PORTS`.
    """
    from ray._private.parameter import RayParams

    params = RayParams(
        num_cpus=num_cpus,
        include_dashboard=False,
        no_monitor=True,
        include_log_monitor=log_monitor,
        temp_dir=folder,
        **agent_ports,
    )
    with _patience(node):
        node.__init__(params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)


def end_node(node: Any) -> None:
    """Kill all its processes; `ray.shutdown` ends only a Ray that `ray.init` has started."""
    node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextlib.contextmanager
def _patience(node: Any) -> Iterator[None]:
    """Patch: while inside, Ray waits two minutes for the raylet it has started, unless that has died; it has a fixed
    number of 30 s.
    """
    from ray._private import services

    get_node = services.get_node
    services.get_node = _patient(node, get_node)
    try:
        yield
    finally:
        services.get_node = get_node


def _patient(node: Any, get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's question for a node that has just been started, which raises `RuntimeError` while it is not there."""

    def wait(*args: Any, **kwargs: Any) -> Any:
        end = time.monotonic() + _START_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if node.dead_processes() or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    return wait


@contextlib.contextmanager
def worker_program(executable: str) -> Iterator[None]:
    """Patch: while inside, a Ray that is started here starts its Python workers by this program. Ray puts
    `sys.executable` into the command of its raylet, and reads it in this one module; a `py_executable` is of a runtime
    environment, and comes after Ray's own Python."""
    import ray._private.services as services

    class Sys:
        executable: str

        def __getattr__(self, name: str) -> Any:
            return getattr(sys, name)

    replaced = Sys()
    replaced.executable = executable
    services.sys = replaced
    try:
        yield
    finally:
        services.sys = sys
