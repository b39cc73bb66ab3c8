"""The runs of a certificate as processes of the command line, so that a driver can be killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.host.processes import python_command
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.row_notes import NOTE_ROWS

_PROGRAM = "from raytrain_nlp.cli.main import main\nmain()"
_PATIENCE_S = 15.0


class Driver:
    """`raytrain-nlp train` of one of the jobs, in a process of its own; it ends with the block it is entered for."""

    def __init__(self, folder: Path, job: Mapping[str, Any], *flags: str):
        self.name = str(job["name"])
        self.paths = RunPaths(folder, self.name)
        file, self._log = folder / f"{self.name}.json", folder / f"{self.name}.log"
        file.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
        self._command = python_command(_PROGRAM, "train", str(file), *flags)
        self.seconds = 0.0
        """How long the process ran."""

    def __enter__(self) -> Driver:
        self._began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = self._start(log)
        return self

    def __exit__(self, *error: object) -> None:
        """The child answers the first signal with a checkpoint, the second by ending all that it started."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                continue
        self.seconds = time.monotonic() - self._began

    def _start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # a session of its own: Ctrl-C in the terminal is for `certify`, which ends its runs itself
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, NOTE_ROWS: "1"},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL the driver, and nothing that it has started."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> None:
        """Wait for a good end.

        Raises:
            InputError: the run was refused before anything started.
            RunError: it failed.
        """
        code = self._process.wait()
        if code == 0:
            return
        errors = self._errors()
        if code == 2:
            raise InputError([_problem(line) for line in errors])
        raise RunError(f"the run '{self.name}' ended with {code}: {errors[-1]} Its log: {self._log}.")

    def _errors(self) -> Sequence[str]:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:] or ["."]


def finished(folder: Path, job: Mapping[str, Any], say: Callable[[str], None], what: str) -> tuple[RunPaths, float]:
    """An undisturbed run, and how many seconds it took."""
    say(f"{what} ...")
    with Driver(folder, job) as driver:
        driver.finish()
    return driver.paths, driver.seconds


def _problem(line: str) -> Problem:
    where, _, what = line.partition(": ")
    return Problem(where, what) if what else Problem("JOB", line)
