"""Who is told what a run does. The command line shows it; the Python API need not."""

from __future__ import annotations

from typing import Any


class Observer:
    """Hears everything and shows nothing; subclasses show what they like."""

    def stage(self, text: str) -> None:
        """A stage before training begins."""

    def event(self, event: dict[str, Any]) -> None:
        """An event of the workers (`tracking.events`)."""

    def progress(self, progress: dict[str, Any]) -> None:
        """Step, total, epoch, and the last loss and rate."""

    def warn(self, text: str) -> None:
        """Something the user should know that does not end the run."""
