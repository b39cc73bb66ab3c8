"""What a sweep tells whoever shows it."""

from __future__ import annotations

from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.tuning.trial_records import TrialRecord


class SweepObserver(Observer):
    """Hears of trials besides; shows nothing."""

    def trial(self, record: TrialRecord, records: list[TrialRecord]) -> None:
        """A trial began, was evaluated or ended; and all so far."""

    def begin(self, sweep: Sweep, concurrent: int) -> None:
        """The sweep starts with so many trials at a time."""
