"""Launchers that die, hang or talk nonsense: the fork server goes on, and its next process starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from raytrain_nlp.cpu import fork_server
from raytrain_nlp.host import devices

SERVER = """
import os, socket, sys, types
from raytrain_nlp.cpu import fork_server as forkserver
forkserver.touches_cuda = lambda: os.environ.get("TOUCHES") == "1"
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
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
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
    theirs = tmp_path / "theirs"  # whose processes may still run when ours ends
    theirs.mkdir()
    for _ in range(5):
        connection = connect(address)
        socket.send_fds(connection, [request(theirs)], [0, 1, 2])
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


def test_a_server_that_has_initialized_cuda_forks_nothing(tmp_path: Path) -> None:
    """The launcher then finds nobody, and starts Python as Ray would have."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)
        ended = subprocess.run(
            [sys.executable, "-c", SERVER, str(listener.fileno())],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60,
            pass_fds=[listener.fileno()], env={**os.environ, "TOUCHES": "1"},
        )  # fmt: skip
    assert ended.returncode == 1 and ended.stderr.strip().endswith("initialized CUDA")
    with pytest.raises(ConnectionRefusedError):
        connect(str(tmp_path / "s"))


@pytest.mark.parametrize("use_gpu", [True, False])
def test_the_server_sees_what_its_forks_may_see(use_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    started = mock.MagicMock()
    monkeypatch.setattr(fork_server.subprocess, "Popen", started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)  # a library may have set it
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with fork_server.forked_processes(use_gpu=use_gpu):
        pass
    seen = started.call_args.kwargs["env"]
    assert seen["CUDA_VISIBLE_DEVICES"] == ("2,3" if use_gpu else "")
    assert seen.get("DS_ACCELERATOR") == (None if use_gpu else "cpu")
    assert seen.get("PYTORCH_NVML_BASED_CUDA_CHECK") == ("1" if use_gpu else None)


@pytest.mark.parametrize(("answer", "touched"), [(3, False), (0, True), (100, True)])
def test_cuda_is_asked_whether_it_is_initialized(answer: int, touched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = mock.Mock(cuDeviceGetCount=lambda count: answer)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(devices.sys, "modules", {})
    assert devices.touches_cuda() is touched


def test_where_there_is_no_driver_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.ctypes, "CDLL", mock.Mock(side_effect=OSError))
    assert not devices.touches_cuda()


def test_with_rocm_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.sys, "modules", {"torch": mock.Mock(version=mock.Mock(hip="6.2"))})
    assert devices.touches_cuda()
