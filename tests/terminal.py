"""The command line in a terminal of its own, where keys are pressed and what stays behind is looked for."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

CTRL_C = b"\x03"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_PROGRAM = "from raytrain_nlp.cli.entry import main; main()"


class Terminal:
    """`raytrain-nlp ARGUMENTS` as the foreground process of a new terminal."""

    def __init__(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None):
        self.started = time.monotonic()
        self._raw = b""
        self._seen: dict[int, psutil.Process] = {}
        self.code: int | None = None
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(sys.executable, [sys.executable, "-c", _PROGRAM, *arguments], dict(env or os.environ))

    @property
    def said(self) -> str:
        """Everything so far, without escape sequences."""
        return _ESCAPES.sub("\n", self._raw.decode(errors="replace"))

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Read until something is so; fails where the process ends before, or time is over."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s} s: {self.said[-2000:]}"
            assert self._read(), f"ended with {self.wait(1)}: {self.said[-2000:]}"

    def press(self, key: bytes = CTRL_C, may_end: bool = False) -> float:
        """Returns the seconds until there was an answer to it in a line of its own.

        Args:
            may_end: the program may have ended already, and then says nothing.
        """
        self._remember()
        before, start = len(self.said), time.monotonic()

        def is_answered() -> bool:
            return any(word in self.said[before:] for word in ("stopping", "ending at once"))

        if may_end:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, key)
            while not is_answered() and self._read():
                pass
        else:
            os.write(self._descriptor, key)
            self.until(is_answered, 30)
        return time.monotonic() - start

    def wait(self, timeout_s: float) -> int:
        """The exit code."""
        end = time.monotonic() + timeout_s
        while self.code is None:
            assert time.monotonic() < end, f"has not ended within {timeout_s} s: {self.said[-2000:]}"
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        while self._read():
            pass
        return self.code

    def left(self, patience_s: float = 5.0) -> list[str]:
        """Processes it had started that still run some seconds later."""
        end = time.monotonic() + patience_s
        while (alive := [process for process in self._seen.values() if _runs(process)]) and time.monotonic() < end:
            time.sleep(0.1)
        return [str(process) for process in alive]

    def kill(self) -> None:
        self._remember()
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _read(self) -> bool:
        if not select.select([self._descriptor], [], [], 0.05)[0]:
            return self.code is None
        with contextlib.suppress(OSError):  # how a terminal says that nobody has it any more
            if more := os.read(self._descriptor, 65536):
                self._raw += more
                return True
        return False

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self.pid)
            return [own, *own.children(recursive=True)]
        return []

    def _remember(self) -> None:
        self._seen |= {process.pid: process for process in self.descendants()}


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
