"""Starts Ray's head in a process of this package. `ray.init` would start it in the driver, with processes that are not
needed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_START_S = 120.0
"""Seconds within which a raylet must start. Ray itself allows 30 s, however busy the machine is."""


def empty_node() -> Any:
    """A node of Ray that is not started yet, for `start_node`. `end_node` ends its processes, also where the start has
    failed half-way.

    The node leaves out processes that one driver on one machine does not need: dashboard, autoscaler and, unless its
    output is wanted, the log monitor (ranks have log files of their own). Each of them takes seconds to start.
    """
    from ray import _raylet as with_stub
    from ray._private.node import Node

    _raylet: Any = with_stub  # Ray's stub of this module leaves most names out

    class LeanNode(Node):
        def start_api_server(self, **arguments: Any) -> None:
            pass

        def start_raylet(self, *arguments: Any, **options: Any) -> None:
            """Write the files from which the raylet reads the ports of its agents. It would otherwise wait for the
            agents to write them, and abort after 15 s, which is too short on a busy machine.
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
    """Start GCS and raylet as `ray.init` does, and return when they are ready. Raises plain `Exception`, as Ray does.

    Args:
        node: the result of `empty_node`.
        log_monitor: send the output of Ray's processes to the driver?
        folder: folder for Ray's files; None: Ray's default.
        agent_ports: a free port for each of `AGENT_PORTS`.
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
    """Kill all processes of the node. `ray.shutdown` ends only a Ray that `ray.init` has started."""
    node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextlib.contextmanager
def _patience(node: Any) -> Iterator[None]:
    """Patch: while inside, Ray waits two minutes for the raylet that it has started, unless the raylet has died. Its
    own limit is fixed at 30 s.
    """
    from ray._private import services

    get_node = services.get_node
    services.get_node = _patient(node, get_node)
    try:
        yield
    finally:
        services.get_node = get_node


def _patient(node: Any, get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's `get_node`, which raises `RuntimeError` while the node is not listed, as a function that tries again until
    `_START_S` have passed.
    """

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
    """Patch: while inside, a Ray that is started here uses this program for its Python workers. Ray puts
    `sys.executable` into the command line of its raylet, and reads it in one module only. The public `py_executable`
    belongs to a runtime environment, which Ray's own Python has to start first.
    """
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
