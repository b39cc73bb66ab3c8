"""Where the time of a step goes: forward, backward, update, and waiting.

What a rank does is told by `TIMELINE.mark`, at the moment at which something else begins. On CPU a moment is a clock's
reading. On a GPU it is an event in the stream of kernels, so that a phase lasts as long as the GPU needs for it (and
waits in it) and not as long as launching it takes; the host reads events that have passed, when a log is written, and
waits for none.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.distributed.device import moment, seconds_between

PHASES = ("forward", "backward", "update", "data_wait", "communication_wait", "checkpoint")
"""What a log tells besides the whole step. The rest of a step is what Python does between them, logging included."""
_OTHER, _EVALUATION, PROFILE, VERIFICATION = "other", "evaluation", "profile", "verification"
OWN = ("data_wait", "forward", "backward", "update", _OTHER)
"""What a rank does in a step without the others."""
_OUTSIDE = ("checkpoint", _EVALUATION, PROFILE)
"""No part of a step."""
_MOST_STEPS = 1_000
"""Kept for `Timeline.steps`."""
_MOST_MARKS = 2_000
"""Kept unread; then those that have passed are added up between two logs, too."""


class Timeline:
    """The phases of one training of this process, since they were last read."""

    def __init__(self) -> None:
        self.stop()

    def start(self) -> None:
        """A training begins; what was not read before is forgotten."""
        self.stop()
        self._runs = True
        self.mark(_OTHER)

    def stop(self) -> None:
        """No training goes on: marks mean nothing."""
        self._runs, self._phase, self._steps = False, _OTHER, 0
        self._marks: deque[tuple[str, Any, bool]] = deque()
        self._seconds: dict[str, float] = {}
        self._step: dict[str, float] = {}
        """Seconds of the step that goes on."""
        self._of_steps: deque[list[float]] = deque(maxlen=_MOST_STEPS)

    def mark(self, phase: str, ends_step: bool = False) -> None:
        """From now on this rank is in `phase`. `ends_step`: where it was in an update, an optimizer step has ended."""
        if not self._runs:
            return
        ends_step = ends_step and self._phase == "update"
        self._phase = phase
        self._marks.append((phase, moment(), ends_step))
        if ends_step and len(self._marks) > _MOST_MARKS:
            self._add_up()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While inside, `name`; then again what was before."""
        before = self._phase
        self.mark(name)
        try:
            yield
        finally:
            self.mark(before)

    def _add_up(self) -> None:
        while len(self._marks) > 1:
            (phase, begun, _), (_, ended, ends_step) = self._marks[0], self._marks[1]
            seconds = seconds_between(begun, ended)
            if seconds is None:  # the GPU is not there yet
                return
            self._marks.popleft()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
            self._step[phase] = self._step.get(phase, 0.0) + seconds
            if ends_step:
                self._steps += 1
                self._of_steps.append([self._step.get(own, 0.0) for own in OWN])
                self._step = {}

    def steps(self) -> list[list[float]]:
        """Of each step that has ended since the last call, the seconds of each phase of `OWN`; of the newest ones where
        they are many. On a GPU those that it has reached.
        """
        self._add_up()
        found = list(self._of_steps)
        self._of_steps.clear()
        return found

    def read(self) -> dict[str, float]:
        """Seconds of a mean step since the last call, named `time/PHASE`; `time/step` is all of it but checkpoints and
        evaluations. Empty where no step has ended since.
        """
        self._add_up()
        if not self._steps:
            return {}
        steps, seconds = self._steps, self._seconds
        self._steps, self._seconds = 0, {}
        whole = sum(value for phase, value in seconds.items() if phase not in _OUTSIDE)
        return {
            "time/step": whole / steps,
            **{f"time/{phase}": seconds.get(phase, 0.0) / steps for phase in PHASES},
        }


TIMELINE = Timeline()
"""Of this process: it has one training at a time."""
