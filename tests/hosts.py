"""Hosts with addresses of their own on this machine: network namespaces on a bridge, each with a storage of copies of
its own. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from raytrain_nlp.storage import open_storage

_NET = f"10.231.{os.getpid() % 250}"
BRIDGE = f"{_NET}.1"
"""The address of this side."""


@dataclass(frozen=True)
class Host:
    name: str
    ip: str
    link: str

    def command(self, *command: str) -> list[str]:
        """A command as it runs on this host, which sees no other's copies of object storage."""
        copies = open_storage("s3://x").root.parent.parent
        copies.mkdir(parents=True, exist_ok=True)
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount -t tmpfs none {copies} && exec "$@"',
            "sh",
            *command,
        ]

    def cut(self) -> None:
        """No packet comes or goes any more; connections stay open."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        _ip("link", "set", self.link, "up")


@contextmanager
def started_hosts(*names: str) -> Iterator[list[Host]]:
    """Skips where the machine does not allow it."""
    if os.getuid() or not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("needs root, ip and unshare")
    bridge = f"rt{os.getpid()}"
    if subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network bridge")
    with ExitStack() as stack:
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{BRIDGE}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield [_start(stack, bridge, name, number) for number, name in enumerate(names, 2)]


def _start(stack: ExitStack, bridge: str, name: str, number: int) -> Host:
    host = Host(f"{bridge}-{name}", f"{_NET}.{number}", f"{bridge}v{number}")
    _ip("netns", "add", host.name)
    stack.callback(_ip, "netns", "del", host.name)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", host.link, "master", bridge, "up")
    for command in (
        ("addr", "add", f"{host.ip}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        _ip("-n", host.name, *command)
    return host


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def copies_on_this_side() -> list[Path]:
    """Files that lie in this side's own copies of object storage."""
    return [path for path in open_storage("s3://x").root.parent.rglob("*") if path.is_file()]
