"""The interface for following a sweep, as the command line does."""

from __future__ import annotations

from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.trial_records import TrialRecord


class SweepObserver(Observer):
    """An `Observer` that is also told of trials. It does nothing; subclasses override what they show."""

    def trial(self, record: TrialRecord, records: list[TrialRecord]) -> None:
        """Called when a trial began, was evaluated or ended.

        Args:
            records: all trials so far.
        """

    def begin(self, sweep: Sweep, concurrent: int) -> None:
        """Called when the sweep starts; `concurrent` is the number of trials at a time."""
