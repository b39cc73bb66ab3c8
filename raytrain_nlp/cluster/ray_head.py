"""The process that holds a driver's own Ray: starts it, tells its address, and ends it when the driver ends, however that ends.

    driver --starts--> this process --starts--> GCS, raylet, fork server --> workers
        <--one line of JSON: {"address": ...} or {"error": ...}--

A process and not a thread of the driver: Ray starts while the driver imports torch, and two threads that import at the same time
can find each other's modules half made. It has a session of its own, so that a Ctrl-C in the driver's terminal reaches the
driver alone, and all that it has started is found by its session.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_START_S = 120.0
"""How long a raylet may take to start. Ray itself gives it 30 s, however busy the machine is."""
_STARTS = 3


@dataclass(frozen=True)
class HeadSettings:
    """What a Ray is to be like; travels as JSON."""

    num_cpus: int
    forked: list[str] | None = None
    """Its processes are forks of one that has loaded these modules besides what every run needs. None: as Ray starts them."""
    log_monitor: bool = False
    """Is the output of its processes to reach the driver?"""
    folder: str | None = None
    """Where its files are to be; None: where Ray has them by itself."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Standard output: the one line. Standard input: closed by the driver, or by the kernel when the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = HeadSettings(**json.loads(sys.argv[1]))
    told = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no answer
    node = None
    with contextlib.ExitStack() as stack:
        try:
            if settings.forked is not None:
                from raytrain_nlp.cpu.fork_server import forked_processes

                stack.enter_context(forked_processes(*settings.forked))
            node = start_node(settings)
            _tell(told, {"address": node.gcs_address})
        except Exception as error:  # noqa: BLE001 - Ray raises plain `Exception` where a start takes too long
            _tell(told, {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]})
        try:
            if node is not None:
                sys.stdin.buffer.read()
        finally:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False)


def _tell(descriptor: int, answer: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "w") as out:
        out.write(json.dumps(answer) + "\n")


def start_node(settings: HeadSettings) -> Any:
    """GCS and raylet, as `ray.init()` starts them; another time where a process of theirs has died at its start, for another may have taken its port."""
    from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default, ensure_token_if_auth_enabled

    enable_token_auth_by_default()
    ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    node_class = _node_class()
    for left in reversed(range(_STARTS)):
        node = node_class.__new__(node_class)
        try:
            _start(node, settings)
            return node
        except Exception:  # Ray raises plain `Exception`
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            if not left:
                raise
    raise AssertionError


def _start(node: Any, settings: HeadSettings) -> None:
    from ray._private import services
    from ray._private.parameter import RayParams

    params = RayParams(
        num_cpus=settings.num_cpus, include_dashboard=False, no_monitor=True, include_log_monitor=settings.log_monitor, temp_dir=settings.folder, **_agent_ports()
    )  # fmt: skip
    get_node = services.get_node
    services.get_node = _patient(node, get_node)
    try:
        node.__init__(params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
    finally:
        services.get_node = get_node


def _agent_ports() -> dict[str, int]:
    """Free ports for the raylet's agents, by the names of Ray's parameters."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in names]
        return {name: bound.getsockname()[1] for name, bound in zip(names, sockets)}


def _node_class() -> type:
    """Ray's node without what the Ray of one driver on one machine has no use for: dashboard, autoscaler and, unless its output is
    wanted, what carries it to the driver (ranks have log files of their own). Each is a process that takes seconds to start."""
    from ray import _raylet
    from ray._private.node import Node

    class LeanNode(Node):
        def start_api_server(self, **arguments: Any) -> None:
            pass

        def start_raylet(self, *arguments: Any, **options: Any) -> None:
            """A raylet reads the ports of its agents from files that they write, and aborts where that takes more than 15 s, as on a busy machine."""
            ports = {
                _raylet.METRICS_AGENT_PORT_NAME: self._ray_params.metrics_agent_port,
                _raylet.METRICS_EXPORT_PORT_NAME: self._ray_params.metrics_export_port,
                _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME: self._ray_params.dashboard_agent_listen_port,
                _raylet.RUNTIME_ENV_AGENT_PORT_NAME: self._ray_params.runtime_env_agent_port,
            }
            for name, port in ports.items():
                _raylet.persist_port(self._session_dir, self._node_id, name, port)
            super().start_raylet(*arguments, **options)

    return LeanNode


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
