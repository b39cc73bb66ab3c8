"""A cluster of a test's own: `ray start --head` with a token, on free ports of the loopback, in a folder of its own,
ended by its process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from hosts import Host
from support import wait_until


@dataclass(frozen=True)
class Head:
    folder: Path
    """Of Ray: its sessions and logs."""
    address: str
    dashboard: str
    pid: int
    env: dict[str, str]
    """Of a process that talks to it."""


@contextlib.contextmanager
def started_head(
    *arguments: str,
    dashboard: bool = True,
    env: dict[str, str] | None = None,
    before: Callable[[str], None] = lambda address: None,
    ip: str = "127.0.0.1",
) -> Iterator[Head]:
    """Nothing of it is left behind, neither a process nor the file that would send other drivers of this machine to it.

    Args:
        before: is given its address before it is started.
    """
    folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: a socket's path has at most 107 characters
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    gcs, http, client = _free_ports(3)
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = (
        {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | settings | (env or {})
    )
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--node-ip-address={ip}",
        f"--port={gcs}",
        f"--temp-dir={folder}",
        f"--ray-client-server-port={client}",
        f"--include-dashboard={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={http}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
        *arguments,
    ]
    before(f"{ip}:{gcs}")
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    driver = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | settings
    head = Head(
        folder, f"{ip}:{gcs}", f"http://127.0.0.1:{http}", process.pid, {**driver, "RAY_ADDRESS": f"{ip}:{gcs}"}
    )
    try:
        wait_until(lambda: process.poll() is not None or _is_up(head, dashboard), 90, "a started head")
        assert process.poll() is None, (folder / "head.log").read_text()
        yield head
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for member in family:  # all at once: nothing in it is worth the half minute of a graceful end
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(60)
        psutil.wait_procs(family, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _is_up(head: Head, dashboard: bool) -> bool:
    if "Ray runtime started" not in (head.folder / "head.log").read_text():
        return False
    if not dashboard:
        return True
    try:
        urllib.request.urlopen(f"{head.dashboard}/api/version", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it asks for the token
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@dataclass(frozen=True)
class Node:
    """A raylet besides the head's."""

    process: subprocess.Popen
    name: str
    """It has one unit of a resource of this name."""

    def kill(self) -> None:
        """SIGKILL its raylet; the workers on it die with it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        for member in family:
            if "raylet" in member.name():  # one that was drained may have ended itself
                member.kill()
        _, left = psutil.wait_procs(family, timeout=20)
        self.process.kill()  # `ray start --block` does not end where a drained raylet has ended by itself
        self.process.wait(60)
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@contextlib.contextmanager
def started_nodes(head: Head, env: dict[str, str] | None = None) -> Iterator[Callable[..., Node]]:
    """Yields what adds a node with two CPUs and `place: 1`, here or on another host; all of them are ended."""
    nodes: list[Node] = []

    def start(name: str, host: Host | None = None) -> Node:
        resources = json.dumps({"place": 1, name: 1})
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            f"--address={head.address}",
            "--block",
            "--num-cpus=2",
            f"--resources={resources}",
            "--object-store-memory=150000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
        ]
        if host:
            command = host.command(*command, f"--node-ip-address={host.ip}")
        file = head.folder / f"{name}.log"
        with file.open("w") as log:
            nodes.append(
                Node(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=head.env | (env or {}),
                        start_new_session=True,
                    ),
                    name,
                )
            )
        wait_until(lambda: "Ray runtime started" in file.read_text(), 60, f"node {name}")
        return nodes[-1]

    try:
        yield start
    finally:
        for node in nodes:
            if node.process.poll() is None:
                family = psutil.Process(node.process.pid).children(recursive=True)
                for member in [psutil.Process(node.process.pid), *family]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                node.process.wait(60)
                psutil.wait_procs(family, timeout=20)
