"""Optuna's trials by their number."""

from __future__ import annotations

from typing import Any


def open_trial(study: Any, number: int) -> Any:
    """The trial of a number, which was asked for and not told: to be reported and told as if it had just been asked
    for. `Study.tell` takes a number, `Trial.report` needs the object, which Optuna makes of the id that its storage has
    for it."""
    import optuna

    return optuna.trial.Trial(study, study.trials[number]._trial_id)
