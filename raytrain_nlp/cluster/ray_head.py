"""The program of the process that holds a driver's own Ray: it starts Ray, reports its address, and ends Ray when the
driver ends, in whatever way.

    driver --starts--> this process --starts--> GCS, raylet, fork server --> workers
        <--one line of JSON: {"address": ...} or {"error": ...}--

This is a process and not a thread of the driver: Ray starts while the driver imports torch, and two threads that import
at the same time can see each other's half-imported modules. The process has a session of its own, so that a Ctrl-C in
the driver's terminal reaches the driver alone, and everything that it starts is found by its session.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from typing import Any

from raytrain_nlp.compat.ray import make_token
from raytrain_nlp.compat.ray_node import AGENT_PORTS, empty_node, end_node, start_node
from raytrain_nlp.cpu import is_plain

_STARTS = 3


@dataclass(frozen=True)
class HeadSettings:
    """The settings of a Ray of the driver's own; passed to the process as JSON."""

    num_cpus: int
    """Logical CPUs."""
    forked: list[str] | None = None
    """Modules that the fork server imports, besides those that every run needs; Ray's worker processes are forks of it.
    None: Ray starts its processes as usual."""
    use_gpu: bool = False
    """Do workers use GPUs?"""
    log_monitor: bool = False
    """Send the output of Ray's processes to the driver?"""
    folder: str | None = None
    """Folder for Ray's files; None: Ray's default."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Standard output carries the one line of JSON. Standard input ends when the driver closes it or is gone, and then
    Ray is ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = HeadSettings(**json.loads(sys.argv[1]))
    told = os.dup(1)
    os.dup2(2, 1)  # what Ray prints must not be taken for the answer
    node = None
    with contextlib.ExitStack() as stack:
        try:
            if settings.forked is not None and not is_plain():
                from raytrain_nlp.cpu.fork_server import forked_processes

                stack.enter_context(forked_processes(*settings.forked, use_gpu=settings.use_gpu))
            node = start_head(settings)
            _tell(told, {"address": node.gcs_address})
        except Exception as error:  # noqa: BLE001 - Ray raises plain `Exception` where a start takes too long
            _tell(told, {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]})
        try:
            if node is not None:
                sys.stdin.buffer.read()
        finally:
            if node is not None:
                end_node(node)


def _tell(descriptor: int, answer: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "w") as out:
        out.write(json.dumps(answer) + "\n")


def start_head(settings: HeadSettings) -> Any:
    """Start GCS and raylet as `ray.init()` does. Tries three times, because a process of Ray's may die at its start
    when another one has taken its port. Raises plain `Exception`, as Ray does.
    """
    make_token()
    for left in reversed(range(_STARTS)):
        node = empty_node()
        try:
            start_node(node, settings.num_cpus, settings.log_monitor, settings.folder, _agent_ports())
            return node
        except Exception:  # Ray raises plain `Exception`
            end_node(node)
            if not left:
                raise
    raise AssertionError


def _agent_ports() -> dict[str, int]:
    """Free ports for the raylet's agents, by the names of Ray's parameters."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in AGENT_PORTS]
        return {name: bound.getsockname()[1] for name, bound in zip(AGENT_PORTS, sockets)}
