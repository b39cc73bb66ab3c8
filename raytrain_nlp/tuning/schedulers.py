"""Builds Ray Tune's scheduler from the sweep's section `scheduler:`, and replays earlier trials to it on resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from raytrain_nlp.compat.ray_tune import keeping_actors, seeded_exploits
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.config.sweep.schedulers import Asha, HyperBand, MedianStopping, Pbt
from raytrain_nlp.config.sweep.search_space import SearchKey
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.run.trial_records import Book
from raytrain_nlp.worker.spec import WorkerSpec

LAST = "last"
"""Key of a result: whether it is the last evaluation of its trial."""
_NO_END = 10**6


def build_scheduler(config: SweepJob, length: Mapping[str, float], slots: int = 1) -> Any:
    """Ray Tune's scheduler.

    Args:
        length: how long a whole trial is, in each unit of `time_attr`.
        slots: trials that run at a time.

    Raises:
        InputError: `max_t` would stop every trial before its end, and none would leave a model.
    """
    from ray.tune import schedulers

    section = config.scheduler
    common = {**section.model_dump(exclude={"type", "max_t"}), "metric": config.metric, "mode": config.mode}
    if isinstance(section, (Asha, HyperBand)):
        whole = length[section.time_attr]
        if section.max_t and section.max_t < whole:
            what = (
                f"stops every trial at {section.time_attr} {section.max_t}, a whole one has {whole:g}, so that none "
                f"would leave a model"
            )
            raise InputError(Problem("scheduler.max_t", what, "Raise it, leave it out, or shorten the job."))
        kind = (
            schedulers.ASHAScheduler
            if isinstance(section, Asha)
            else keeping_actors(schedulers.HyperBandScheduler, slots)
        )
        return _to_the_end(kind)(
            **common, max_t=section.max_t or (_NO_END if isinstance(section, Asha) else max(math.ceil(whole), 1))
        )
    if isinstance(section, MedianStopping):
        return _to_the_end(schedulers.MedianStoppingRule)(**common)
    if isinstance(section, Pbt):
        mutations = {key: _mutation(entry) for key, entry in config.search_space.items() if entry.searched}
        return keeping_actors(seeded_exploits(schedulers.PopulationBasedTraining, config.seed), slots)(
            **common, hyperparam_mutations=mutations, log_config=False
        )
    return schedulers.FIFOScheduler()


def length_of(job: TrainJob, spec: WorkerSpec) -> dict[str, float]:
    """How long a whole trial of the base job is: evaluations, steps, epochs; `spec` is its workers'."""
    arguments = job.arguments()
    epochs = spec.total_steps / spec.steps_per_epoch
    if arguments["eval_strategy"] == "epoch":
        evaluations = math.ceil(epochs)
    else:
        every = arguments["eval_steps"]
        evaluations = int(spec.total_steps // max(every if every >= 1 else every * spec.total_steps, 1))
    return {"training_iteration": evaluations, "step": spec.total_steps, "epoch": epochs}


def replay(scheduler: Any, book: Book, config: SweepJob) -> None:
    """Report the trials that ended before this driver to the scheduler, so that it compares new trials with them. Only
    asha and median_stopping; the others need their trials alive.
    """
    if not isinstance(config.scheduler, (Asha, MedianStopping)):
        return
    for record in book.trials.values():
        if record.ended_well and record.history:
            trial = SimpleNamespace(trial_id=record.name, status="TERMINATED")
            scheduler.on_trial_add(None, trial)
            for entry in record.history:
                scheduler.on_trial_result(None, trial, entry)
            scheduler.on_trial_complete(None, trial, record.history[-1])


def _to_the_end(kind: type) -> Any:
    """Derive a scheduler that never stops a trial at its last evaluation, after which only the model is left to write.
    The scheduler is still told when the trial completes.
    """
    from ray.tune.schedulers import TrialScheduler

    class ToTheEnd(kind):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return TrialScheduler.CONTINUE if result.get(LAST) else super().on_trial_result(controller, trial, result)

    return ToTheEnd


def _mutation(entry: SearchKey) -> Any:
    from ray import tune

    if entry.choices:
        return list(entry.choices)
    if entry.quniform:
        return tune.quniform(*entry.quniform)
    assert entry.bounds is not None, "what is drawn has choices or a range"
    low, high = entry.bounds
    if entry.integer or entry.randint:
        return tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if entry.loguniform else tune.uniform(low, high)
