"""A process under measurement, with all its descendants: when it said what, how it ended, and a kill that leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psutil

# One thread a process on both sides; nothing asks the network; no cluster of somebody else.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class Finished:
    """A process that ended well. Times are seconds since 1970."""

    started: float
    ended: float
    output: dict[str, Any]
    """The JSON object of the last line of standard output that is one."""
    load: float
    """The machine's load average of the last minute when the process started: about 0 on a quiet one."""
    stderr: list[tuple[float, str]] = field(repr=False)
    """Lines of standard error with their times."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    def said(self, start_of_line: str) -> float | None:
        """When a line of standard error began with this."""
        return next((when for when, line in self.stderr if line.startswith(start_of_line)), None)


class Child:
    """A started process."""

    def __init__(self, command: list[str]):
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | ENVIRONMENT
        self.load, self.started = os.getloadavg()[0], time.time()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.pid = self.process.pid
        self._lines: dict[str, list[tuple[float, str]]] = {"stdout": [], "stderr": []}
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self._lines[name].append((time.time(), line.rstrip("\n")))

    def ended(self) -> bool:
        return self.process.poll() is not None

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants that are alive now."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def finish(self, timeout_s: float = 3600, patience_s: float = 60) -> Finished:
        """Wait for the end; ends this program with the child's last lines where the child failed. After `timeout_s` the
        child is killed, `patience_s` later also what it has left behind.
        """
        try:
            code = self.process.wait(timeout_s)
            ended = time.time()
        except BaseException:
            self.kill(patience_s)
            raise
        for reader in self._readers:
            reader.join(10)
        if code:
            self.fail(f"ended with {code}")
        return Finished(self.started, ended, self._output(), self.load, self._lines["stderr"])

    def _output(self) -> dict[str, Any]:
        for _, line in reversed(self._lines["stdout"]):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
        self.fail("printed no JSON object")
        raise AssertionError

    def fail(self, what: str) -> None:
        """End this program, showing what the child said last."""
        last = [line for _, line in sorted(self._lines["stdout"][-30:] + self._lines["stderr"][-30:])]
        sys.exit(f"error: {' '.join(self.process.args[1:4])} {what}:\n" + "\n".join(last))

    def kill(self, patience_s: float = 60) -> tuple[float, list[str]]:
        """SIGKILL the process alone, wait until its descendants have gone too, all but Ray's idle agents.

        Those agents, having lost their Ray, try for a minute to tell it so; they are killed here, by id. Returns the
        seconds until the others had gone, and the names of others that outlived `patience_s`; these are killed too.
        """
        family = {process: _title(process) for process in self.tree()[1:]}
        started = time.monotonic()
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        waited_for = [process for process, name in family.items() if not name.startswith(_AGENTS)]
        while (
            alive := [process for process in waited_for if _lives(process)]
        ) and time.monotonic() - started < patience_s:
            time.sleep(0.1)
        seconds = time.monotonic() - started
        for process in family:
            if _lives(process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()  # psutil checks the creation time: never another process of the same id
        return seconds, [family[process] for process in alive]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1]).rsplit("/", 1)[-1] or process.name()
    except psutil.Error:
        return "gone"
