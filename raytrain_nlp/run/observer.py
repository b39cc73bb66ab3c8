"""Who is told what a run does. The command line shows it; the Python API need not.

A thread of the driver (`followed`) reads what the workers write. What it or the observer raises is told by
`observer.warn`, once each time it begins; the next events are read all the same. It imports nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.errors import InputError
from raytrain_nlp.host.threads import looking
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.tracking.events import read_events

_POLL_S = 0.3
_END_S = 30.0
"""How long the end waits for an observer that hangs."""


class Observer:
    """Hears everything and shows nothing; subclasses show what they like."""

    def stage(self, text: str) -> None:
        """A stage before training begins."""

    def tell(self, text: str) -> None:
        """A line that stays: what the job's workers are."""

    def event(self, event: dict[str, Any]) -> None:
        """An event of the workers (`tracking.events`)."""

    def progress(self, progress: dict[str, Any]) -> None:
        """Step, total, epoch, and the last loss and rate."""

    def warn(self, text: str) -> None:
        """Something the user should know that does not end the run."""


@contextlib.contextmanager
def followed(paths: RunPaths, observer: Observer) -> Iterator[None]:
    """Hand the workers' new events and progress to the observer while inside."""
    offset = paths.events.stat().st_size if paths.events.exists() else 0

    def follow() -> None:
        nonlocal offset
        for event, behind in read_events(paths.events, offset):
            offset = behind  # one that cannot be shown is not shown again
            observer.event(event)
        with contextlib.suppress(InputError):  # half a progress.json, on a file system that shows one
            if progress := read_json(paths.progress):
                observer.progress(progress)

    def tell(reason: str) -> None:
        observer.warn(f"what the workers say cannot be shown for now ({reason}). Training goes on.")

    with looking("follow", follow, _POLL_S, tell, at_end=True, join_s=_END_S):
        yield
