"""The process that holds a driver's own Ray: starts it, tells its address, and ends it when the driver ends, however
that ends.

    driver --starts--> this process --starts--> GCS, raylet, fork server --> workers
        <--one line of JSON: {"address": ...} or {"error": ...}--

A process and not a thread of the driver: Ray starts while the driver imports torch, and two threads that import at the
same time can find each other's modules half made. It has a session of its own, so that a Ctrl-C in the driver's
terminal reaches the driver alone, and all that it has started is found by its session.
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
    """What a Ray is to be like; travels as JSON."""

    num_cpus: int
    forked: list[str] | None = None
    """Its processes are forks of one that has loaded these modules besides what every run needs. None: as Ray starts
    them.
    """
    use_gpu: bool = False
    """Do workers use GPUs?"""
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
    """GCS and raylet, as `ray.init()` starts them; another time where a process of theirs has died at its start, for
    another may have taken its port.
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
