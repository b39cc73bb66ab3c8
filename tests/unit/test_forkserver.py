"""Launchers that die, hang or talk nonsense: the fork server goes on, and its next process starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytrain_nlp.cpu import fork_server

SERVER = """
import socket, sys, types
from raytrain_nlp.cpu import fork_server as forkserver
forkserver._PRELOAD = ()
forkserver._REQUEST_S = 0.1
light = sys.modules["raytrain_nlp.compat.deepspeed"] = types.ModuleType("deepspeed")
light.import_deepspeed = lambda: None
forkserver.serve(socket.socket(fileno=int(sys.argv[1])), [])
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a fork server that has loaded nothing; it ends with the test's end of its standard input."""
    path = tmp_path_factory.mktemp("s") / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listener.fileno())], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
    yield str(path)
    server.stdin.close()
    assert server.wait(20) == 0


def connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(address)
    return connection


def request(place: Path) -> bytes:
    script = place / "script.py"
    script.write_text("import sys, pathlib\npathlib.Path(sys.argv[1]).write_text('done')\n")
    return (
        json.dumps(
            {"arguments": [str(script), str(place / "made")], "environment": dict(os.environ), "directory": str(place)}
        ).encode()
        + b"\n"
    )


def start(address: str, place: Path) -> None:
    """A process as a launcher asks for it, and that it runs to its end."""
    read, write = os.pipe()
    with connect(address) as connection:
        socket.send_fds(connection, [request(place)], [write, write, write])
        assert connection.recv(1) == b"1"
    os.close(write)
    with os.fdopen(read) as output:
        assert output.read() == ""  # ends when the process does
    assert (place / "made").read_text() == "done"


@pytest.mark.parametrize(
    "content",
    [b"", b'{"arguments": [', b"\n", b"no json\n", b"[]\n"],
    ids=["nothing", "half", "an empty line", "no JSON", "a list"],
)
@pytest.mark.parametrize("streams", [0, 3], ids=["no streams", "its streams"])
@pytest.mark.parametrize("ends", ["closes", "hangs"])
def test_the_next_launcher_is_served(address: str, tmp_path: Path, content: bytes, streams: int, ends: str) -> None:
    connection = connect(address)
    if content:
        socket.send_fds(connection, [content], [1] * streams)
    if ends == "closes":
        connection.close()
    start(address, tmp_path)
    connection.close()


def test_a_launcher_that_dies_before_the_answer(address: str, tmp_path: Path) -> None:
    for _ in range(5):
        connection = connect(address)
        socket.send_fds(connection, [request(tmp_path)], [0, 1, 2])
        connection.close()
    start(address, tmp_path)


def test_half_a_request_is_told_from_a_whole_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(theirs, [b'{"a": '], [0, 1, 2])
        theirs.close()
        streams: list[int] = []
        with pytest.raises((ValueError, OSError)):
            fork_server._receive(ours, streams)
        assert len(streams) == 3
        for stream in streams:
            os.close(stream)
