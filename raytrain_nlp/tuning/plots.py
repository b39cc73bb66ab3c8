"""Pictures of a sweep, as PNG, and how much each key counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.paths import write_json
from raytrain_nlp.reporting.figures import draw_panel
from raytrain_nlp.reporting.sweep_panels import sweep_panels
from raytrain_nlp.reporting.sweep_story import IMPORTANCE
from raytrain_nlp.run.trial_records import Book

_FEW = 3
"""The least number of finished trials for which importances are computed."""


def write_plots(config: SweepJob, book: Book, study: Any, folder: Path) -> list[Path]:
    """Write the plots for which there are enough trials, as PNG with captions into `folder`, and the importance of each
    key for `report`; returns the pictures.
    """
    folder.mkdir(exist_ok=True)
    keys = [key for key, entry in config.search_space.items() if entry.searched]
    best, weights = book.best(config.metric, config.mode), importances(study, keys)
    write_json(folder / IMPORTANCE, weights)
    drawn = []
    for panel in sweep_panels(config, list(book.trials.values()), best.number if best else None, weights):
        drawn.append(folder / f"{panel.name}.png")
        drawn[-1].write_bytes(draw_panel(panel, caption=True))
    return drawn


def importances(study: Any, keys: list[str]) -> dict[str, float]:
    """The share of the metric's variance that each searched key explains, from 0 to 1 (fANOVA, Hutter et al. 2014, by
    Optuna); empty where too few trials finished.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    always = [key for key in keys if all(key in trial.params for trial in finished)]
    varied = [key for key in always if len({json.dumps(trial.params[key]) for trial in finished}) > 1]
    if len(finished) < _FEW or not varied or len({trial.value for trial in finished}) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied)
