"""Who is told what a run does. The command line shows it; the Python API need not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.tracking.events import read_events


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
    stop = threading.Event()
    offset = paths.events.stat().st_size if paths.events.exists() else 0

    def follow() -> None:
        nonlocal offset
        while True:
            last = stop.wait(0.3)
            for event, behind in read_events(paths.events, offset):
                offset = behind
                observer.event(event)
            with contextlib.suppress(Exception):
                if progress := read_json(paths.progress):
                    observer.progress(progress)
            if last:
                return

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
