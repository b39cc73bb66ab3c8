"""When workers of a group have failed, as an event of the run: Ray Train's controller says so as soon as it knows.

It is written in the controller's process, which shares the run's folder with the driver; where runs lie in object
storage there is no such folder, and no such event.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tracking.events import EventLog

_LONGEST = 200


class FailureEvents(UserCallback):
    """Writes `{"kind": "failure", "ranks": [...], "error": LINE}`. What goes wrong here is nobody's failure."""

    def __init__(self, paths: RunPaths):
        self._path = paths.events if paths.store.shared else None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train with the exception of each failed rank, before it ends the others."""
        ranks = sorted(worker_exceptions)
        lines = str(worker_exceptions[ranks[0]]).strip().splitlines() if ranks else []
        events = EventLog(self._path, new=False)
        try:
            events.write("failure", ranks=ranks, error=(lines or ["no message"])[-1].strip()[:_LONGEST])
        except (OSError, ValueError):  # ValueError: half a pair of surrogates, which UTF-8 has not
            return
