"""A Ray of the driver's own for one run on one machine: a process starts it, the driver connects to it from its main
thread, and it ends with the driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from typing import Any

import psutil

from raytrain_nlp.cluster.ray_head import HeadSettings
from raytrain_nlp.compat.ray import use_token
from raytrain_nlp.errors import RunError
from raytrain_nlp.host.processes import python_command

SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes away nodes of one machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # the end of a short run is noticed at once
    # Ray rejects a worker that registers later, and the driver then waits for its first workers forever
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_niceness": "0",  # by default Ray lowers the priority of training below everything else
    # every process of Ray, idle or not, wakes up a hundred times a second, which slows training on few CPUs
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    # connecting would wait for these processes; the driver starts those that it needs
    "RAY_prestart_worker_first_driver": "0",
}
_PROGRAM = "from raytrain_nlp.cluster.ray_head import main; main()"
_START_S = 300.0
_GONE_S = 5.0


class LocalRay:
    """The process that holds the driver's own Ray, watched without a thread."""

    def __init__(self, settings: HeadSettings) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            python_command(_PROGRAM, settings.to_json()),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._answer: dict[str, str] | None = None

    def is_up(self) -> bool:
        """Has the process reported Ray's address, or why there is none?"""
        return self._answer is not None or bool(select.select([self._stdout], [], [], 0)[0])

    def address(self) -> str:
        """The address of Ray's GCS, waited for. Raises `RunError` where Ray cannot be started."""
        if self._answer is None:
            if not select.select([self._stdout], [], [], _START_S)[0]:
                raise RunError(
                    f"Ray cannot be started: it has not answered within {_START_S:.0f} s. Try again when the machine "
                    f"is less busy."
                )
            line = self._stdout.readline()
            self._answer = json.loads(line) if line.endswith(b"\n") else {"error": self._last_words()}
        if "error" in self._answer:
            raise RunError(
                f"Ray cannot be started: {self._answer['error'].rstrip('.')}. Try again when the machine is less busy, "
                f"or look into Ray's logs."
            )
        return self._answer["address"]

    def kill(self) -> list[psutil.Process]:
        """Kill all processes of this Ray, also those that hang. Returns the killed processes."""
        mine = self._processes()
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return mine

    def end(self) -> None:
        """Kill this Ray, and return when its processes have ended."""
        mine = self.kill()
        self._stdin.close()
        self._stdout.close()
        self._errors.close()
        self._process.wait()
        end = time.monotonic() + _GONE_S
        while any(map(_is_alive, mine)) and time.monotonic() < end:
            time.sleep(0.02)

    def _processes(self) -> list[psutil.Process]:
        """All processes of this Ray. Its head is suspended first, so that it starts no further ones; the others are
        those of its session and its descendants.
        """
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            head = psutil.Process(self._process.pid)
            head.suspend()
            found = {process.pid: process for process in [head, *head.children(recursive=True)]}
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if pid not in found and os.getsid(pid) == self._process.pid:
                    found[pid] = psutil.Process(pid)
        return list(found.values())

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"its process ended with {self._process.returncode}"


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def connect(address: str, **options: Any) -> None:
    """`ray.init()` for a Ray of this driver's own, with the authentication token that its head has created."""
    import ray

    use_token()
    ray.init(address=address, **options)
