"""Where this rank's training stands: told by `Trainer`'s events, read by whoever asks how long a step has taken."""

from __future__ import annotations

import time
from collections import deque

_STEPS = 101


class StepClock:
    """The step a rank is in, since when, and what a step takes. Plain values: another thread may read them at any
    moment.
    """

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Training begins after `step` updates."""
        self.step = step
        """Updates that have been made."""
        self.since = time.monotonic()
        """When the newest update had been made, or what came after it: an evaluation, a checkpoint."""
        self.seconds: deque[float] = deque(maxlen=_STEPS)
        """Of the newest steps."""
        self.first = True

    def done(self, step: int) -> None:
        """An update has been made."""
        now = time.monotonic()
        if not self.first:  # in the first one libraries are loaded and kernels compiled
            self.seconds.append(now - self.since)
        self.step, self.since, self.first = step, now, False

    def pause(self) -> None:
        """Something else than a step went on until now."""
        self.since = time.monotonic()

    @property
    def median(self) -> float | None:
        """Seconds of a step; None before a few have been made."""
        seconds = sorted(self.seconds)
        return seconds[len(seconds) // 2] if len(seconds) >= 3 else None


CLOCK = StepClock()
"""Of this process: it has one training at a time."""
