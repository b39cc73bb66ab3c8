"""Observers of a run: the command line prints what they are told; the Python API need not.

A thread of the driver (`followed`) reads the events that the workers write and passes them to the observer. An error in
the thread or in the observer is reported through `observer.warn`, once each time errors begin, and the thread goes on.
The thread imports no modules, so it cannot collide with the main thread's imports.
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
"""Seconds for which `followed` waits at its end for an observer that hangs."""


class Observer:
    """Is told what a run does, and shows nothing; subclasses override the methods for what they show."""

    def stage(self, text: str) -> None:
        """A stage of the driver has begun, such as reading files or waiting for workers."""

    def tell(self, text: str) -> None:
        """A line of information that should stay on the screen, such as the number of workers."""

    def event(self, event: dict[str, Any]) -> None:
        """The workers have written an event (`tracking.events`)."""

    def progress(self, progress: dict[str, Any]) -> None:
        """The content of `progress.json`: step, total steps, epoch, and the last loss and learning rate."""

    def warn(self, text: str) -> None:
        """Something has happened that the user should know of and that does not end the run."""


@contextlib.contextmanager
def followed(paths: RunPaths, observer: Observer) -> Iterator[None]:
    """While inside, pass the workers' new events and their progress to the observer, from a thread. Progress that a
    group of workers left behind is not passed once that group has ended.
    """
    offset = paths.events.stat().st_size if paths.events.exists() else 0
    left_behind = _progress_of(paths)

    def follow() -> None:
        nonlocal offset, left_behind
        for event, behind in read_events(paths.events, offset):
            offset = behind  # before the call: an event whose display fails is not passed again
            if event.get("phase") == "worker":  # the first event of a group
                left_behind = _progress_of(paths)
            observer.event(event)
        progress = _progress_of(paths)
        if progress and progress != left_behind:
            observer.progress(progress)

    def tell(reason: str) -> None:
        observer.warn(f"what the workers say cannot be shown for now ({reason}). Training goes on.")

    with looking("follow", follow, _POLL_S, tell, at_end=True, join_s=_END_S):
        yield


def _progress_of(paths: RunPaths) -> dict[str, Any] | None:
    """The content of `progress.json`; None if there is no such file, or half of one, which some file systems show."""
    with contextlib.suppress(InputError):
        return read_json(paths.progress)
    return None
