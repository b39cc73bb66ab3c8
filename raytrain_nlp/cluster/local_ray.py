"""A Ray of the driver's own, for one run on one machine: started beside the driver, connected to from its main thread,
ended with it.
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
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no spot notice can come
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # the end of a short run is seen at once
    # a worker that registers later is turned away, and the driver then waits for the first ones without end
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_niceness": "0",  # Ray would run the training itself below everything else on this machine
    # every process of Ray, idle or not, wakes up a hundred times a second: with a few CPUs that is felt in training
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    # who connects would wait until they are up; the driver has those booted that it needs
    "RAY_prestart_worker_first_driver": "0",
}
_PROGRAM = "from raytrain_nlp.cluster.ray_head import main; main()"
_START_S = 300.0
_GONE_S = 5.0


class LocalRay:
    """Ray's processes; this object only watches them, no thread is started.

    Raises, where its address is asked for:
        RunError: Ray cannot be started.
    """

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
        """Has it told its address, or why there is none?"""
        return self._answer is not None or bool(select.select([self._stdout], [], [], 0)[0])

    def address(self) -> str:
        """Where its GCS listens; waits for it."""
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
        """Kill everything this Ray has started, wherever it hangs; returns what was killed."""
        mine = self._processes()
        for process in mine:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return mine

    def end(self) -> None:
        """Kill it; returns when it is gone."""
        mine = self.kill()
        self._stdin.close()
        self._stdout.close()
        self._errors.close()
        self._process.wait()
        end = time.monotonic() + _GONE_S
        while any(map(_is_alive, mine)) and time.monotonic() < end:
            time.sleep(0.02)

    def _processes(self) -> list[psutil.Process]:
        """Its head first, so that nothing is started again; then all of its session, and what descends from it in
        others.
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
    """`ray.init()` to a Ray of this driver's own, whose head has made the token that such a Ray asks for."""
    import ray

    use_token()
    ray.init(address=address, **options)
