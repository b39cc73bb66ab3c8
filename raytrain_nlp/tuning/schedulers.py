"""The sweep's section `scheduler:` as Ray Tune's object, and what a resumed sweep tells it of the trials before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raytrain_nlp.config.schedulers import Asha, HyperBand, MedianStopping, Pbt
from raytrain_nlp.config.search_space import SearchKey
from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.tuning.book import Book

_NO_END = 10**6


def build_scheduler(config: SweepJob, evaluations: int) -> Any:
    """Ray Tune's scheduler. `evaluations` is how many a whole trial has."""
    from ray.tune import schedulers

    section = config.scheduler
    common = {**section.model_dump(exclude={"type", "max_t"}), "metric": config.metric, "mode": config.mode}
    if isinstance(section, Asha):
        return schedulers.ASHAScheduler(**common, max_t=section.max_t or _NO_END)
    if isinstance(section, HyperBand):
        return schedulers.HyperBandScheduler(**common, max_t=section.max_t or max(evaluations, 1))
    if isinstance(section, MedianStopping):
        return schedulers.MedianStoppingRule(**common)
    if isinstance(section, Pbt):
        mutations = {key: _mutation(entry) for key, entry in config.search_space.items() if entry.searched}
        return schedulers.PopulationBasedTraining(**common, hyperparam_mutations=mutations, log_config=False)
    return schedulers.FIFOScheduler()


def replay(scheduler: Any, book: Book, config: SweepJob) -> None:
    """Tell what ended before this driver, so that new trials are compared with it. For schedulers that judge each trial alone."""
    if not isinstance(config.scheduler, (Asha, MedianStopping)):
        return
    for record in book.trials.values():
        if record.ended_well and record.history:
            trial = SimpleNamespace(trial_id=record.name, status="TERMINATED")
            scheduler.on_trial_add(None, trial)
            for entry in record.history:
                scheduler.on_trial_result(None, trial, entry)
            scheduler.on_trial_complete(None, trial, record.history[-1])


def _mutation(entry: SearchKey) -> Any:
    from ray import tune

    if entry.choices:
        return list(entry.choices)
    if entry.quniform:
        return tune.quniform(*entry.quniform)
    low, high = entry.bounds
    if entry.integer or entry.randint:
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if entry.loguniform else tune.uniform(low, high)
