"""How long the end of a run waits for its tracker: not by the clock alone, which says nothing on a busy machine."""

from __future__ import annotations

import os
import threading
import time

import psutil

_MOST = 4.0
"""Times the timeout, however much life there is."""
_BUSY = 0.005
"""Share of a CPU above which a thread computes (imports MLflow, say), and waits for nobody."""


class Patience:
    """Lasts until a thread has shown no sign of life for `timeout_s`.

    A sign of life is an answer of the server, or that the thread computes while nothing has failed yet.
    """

    def __init__(self, timeout_s: float):
        now = time.monotonic()
        self._timeout, self._end = timeout_s, now + _MOST * timeout_s
        self._alive = now
        self._answers: int | None = None
        self._looked, self._cpu = now, 0.0

    @property
    def shows_life(self) -> bool:
        """Was there a sign of life within the last timeout?"""
        return time.monotonic() - self._alive < self._timeout

    def lasts(self, thread: threading.Thread, answers: int, failures: int) -> bool:
        """Is the thread to be waited for any longer? `answers`: of the server so far; `failures`: in a row."""
        now = time.monotonic()
        if self._answers is not None and answers != self._answers:
            self._alive = now
        self._answers = answers
        if now - self._looked >= 1.0:
            cpu = _cpu_of(thread)
            if self._cpu and not failures and cpu - self._cpu > _BUSY * (now - self._looked):
                self._alive = now
            self._looked, self._cpu = now, cpu
        return now < min(self._alive + self._timeout, self._end)


def _cpu_of(thread: threading.Thread) -> float:
    """Seconds of CPU time of a thread; 0 where the system does not tell."""
    times = {part.id: part.user_time + part.system_time for part in psutil.Process(os.getpid()).threads()}
    return times.get(thread.native_id or -1, 0.0)
