"""Optuna: continuing trials by their number."""

from __future__ import annotations

from typing import Any


def open_trial(study: Any, number: int) -> Any:
    """A running trial as an object, as `Study.ask` returned it. `Study.tell` takes a number, but `Trial.report` needs
    the object, which Optuna creates from the trial's id in its storage.
    """
    import optuna

    return optuna.trial.Trial(study, study.trials[number]._trial_id)
