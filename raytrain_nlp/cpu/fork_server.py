"""Starts the worker processes of a local Ray as forks of a server that has imported torch, transformers and DeepSpeed.

    driver --starts--> fork server <--"default_worker.py ..."-- launcher <--starts-- raylet
                            `--forks--> Ray's worker process

A run on one machine has about ten processes, and importing in each is most of the time to its first step. The server
imports once, while the driver reads the data; the forks also share the memory of what it has loaded. Ray itself is
imported after the fork: its library reads the job id and settings from the environment when it is loaded, and draws
object ids from a random state that all forks would otherwise share.

A process that has initialized CUDA cannot be forked. The server of a job on GPUs makes no call that would, and looks
before it serves whether a library did; then it ends. Where forking is not possible (another Ray, a runtime environment
with a Python of its own, the server has ended) the process starts as Ray would have started it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.compat.ray_node import worker_program
from raytrain_nlp.cpu.huge_pages import huge_pages
from raytrain_nlp.host.devices import UNTOUCHED, WITHOUT_GPU, touches_cuda
from raytrain_nlp.host.processes import python_command
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.host.sockets import short_name

_LAUNCHER = Path(__file__).with_name("fork_launcher.py")
_PROGRAM = "from raytrain_nlp.cpu.fork_server import main; main()"
_REQUEST_S = 10.0
"""How long a launcher may take to send its request; the server handles one at a time."""
_PRELOAD = (
    "pandas",
    "raytrain_nlp.data.feed",
    "raytrain_nlp.worker.loop",
    "raytrain_nlp.trainer.trainer",
)


@contextlib.contextmanager
def forked_processes(*modules: str, use_gpu: bool = False) -> Iterator[None]:
    """While inside, a Ray that this process starts gets its workers from a fork server.

    Args:
        modules: modules that the server imports besides its own list.
        use_gpu: whether workers use GPUs; else the server and all its forks see none.
    """
    with scratch_folder() as folder:
        folder = short_name(folder / "socket").parent
        address = str(folder / "socket")
        executable = folder / "python"
        command = [sys.executable, "-S", "-E", str(_LAUNCHER), address, sys.executable]
        executable.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
        executable.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            own = UNTOUCHED if use_gpu else {**huge_pages(), **WITHOUT_GPU}
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **own}
            server = subprocess.Popen(
                python_command(_PROGRAM, str(listener.fileno()), *modules),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                env=variables,
            )
        try:  # while it loads, this process imports Ray
            with worker_program(str(executable)):
                yield
        finally:
            server.kill()  # it has no state to save; where a job was refused, it may still be importing
            server.wait()
            assert server.stdin is not None, "it is a pipe"
            server.stdin.close()


def serve(listener: socket.socket, modules: list[str]) -> None:
    """Import `modules`, then fork a process for each launcher that connects to `listener`, until the driver has ended
    (its end of standard input closes).
    """
    import selectors

    from raytrain_nlp.compat.deepspeed import import_deepspeed

    for name in (*_PRELOAD, *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import_deepspeed()
    if "ray" in sys.modules or touches_cuda():
        sys.exit("the fork server has loaded Ray, or initialized CUDA")  # workers start as Ray starts them
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of everything loaded here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if listener not in ready:
                return
            connection, _ = listener.accept()
            with connection:
                streams: list[int] = []
                try:
                    connection.settimeout(_REQUEST_S)
                    request = _receive(connection, streams)
                    if os.fork() == 0:
                        selector.close()
                        listener.close()
                        connection.close()
                        _become(request, streams)
                    connection.sendall(b"1")
                except (OSError, ValueError):  # a launcher that died; one that lives starts its process without us
                    pass
                finally:
                    for stream in streams:
                        os.close(stream)


def _receive(connection: socket.socket, streams: list[int]) -> dict[str, Any]:
    """Read a launcher's request. The file descriptors of its standard streams are appended to `streams`.

    Raises:
        OSError, ValueError: the request is incomplete.
    """
    first, received, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    streams += received
    parts = [first]
    while parts[-1] and not parts[-1].endswith(b"\n"):
        parts.append(connection.recv(1 << 20))
    if not parts[-1] or len(streams) != 3:
        raise ValueError("the launcher has ended in the middle of its request")
    return json.loads(b"".join(parts))


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """In a fork: run the program that the raylet asked for, then exit the process. Does not return."""
    import random

    import numpy as np

    code = 1
    try:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["environment"])
        random.seed()
        np.random.seed()
        script, *arguments = request["arguments"]
        sys.argv = [script, *arguments]
        sys.path.insert(0, os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Arguments: the listener's file descriptor, and modules to load besides."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(listener, sys.argv[2:])
    finally:  # a driver that was killed has not removed the folder
        shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
