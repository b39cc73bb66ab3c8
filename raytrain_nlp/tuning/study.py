"""The searcher's state: an Optuna study in a journal file of JSON lines, without pickle (ask-and-tell interface)."""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

from raytrain_nlp.compat.optuna import open_trial
from raytrain_nlp.config.sweep import SweepJob
from raytrain_nlp.config.sweep.search_space import Point, SearchKey, grid_points, is_active, ordered
from raytrain_nlp.run.trial_records import FAILED, FINISHED, TrialRecord

_PLAIN = (str, int, float, bool, type(None))


class Study:
    """An Optuna study by ask-and-tell. A trial has the same number in the study and in the sweep."""

    def __init__(self, config: SweepJob, file: Path):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space, self._metric = config.search_space, config.metric
        self._study = optuna.create_study(
            study_name=config.name,
            storage=JournalStorage(JournalFileBackend(str(file))),
            direction="maximize" if config.mode == "max" else "minimize",
            load_if_exists=True,
        )
        # the sampler of a resumed study must not draw the same points again
        self._study.sampler = _sampler(config, config.seed + len(self._study.trials))
        self._open: dict[int, Any] = {}
        if config.searcher.type == "grid" and not self._study.trials:
            for point in grid_points(config.search_space):
                self._study.enqueue_trial(
                    {key: _coded(config.search_space[key], value) for key, value in point.items()}
                )

    @property
    def study(self) -> Any:
        return self._study

    def ask(self) -> tuple[int, Point]:
        """The next trial: its number and its values."""
        trial = self._study.ask()
        self._open[trial.number] = trial
        point: Point = {}
        for key in ordered(self._space):
            if is_active(self._space[key], point):
                point[key] = _suggest(trial, key, self._space[key])
        return trial.number, point

    def reopen(self, number: int) -> None:
        """Continue a trial that was open when an earlier driver ended."""
        self._open[number] = open_trial(self._study, number)

    def report(self, number: int, value: float, time: int) -> None:
        """Report an intermediate value of the metric, at evaluation number `time`."""
        trial = self._open.get(number)
        if trial is None or not math.isfinite(value):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of several reports at the same time, Optuna keeps the first
            trial.report(value, time)

    def tell(self, record: TrialRecord) -> None:
        """Report how a trial ended: the metric of a finished one. A stopped trial is pruned and counts with its last
        reported value; a failed one does not count.
        """
        from optuna.trial import TrialState

        trial, value = self._open.pop(record.number, None), record.value(self._metric)
        if trial is None:
            return
        if record.status == FAILED or value is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif record.status == FINISHED:
            self._study.tell(trial, value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)


def _sampler(config: SweepJob, seed: int) -> Any:
    from optuna.samplers import RandomSampler, TPESampler

    if config.searcher.type == "optuna":
        return TPESampler(
            seed=seed, n_startup_trials=config.searcher.n_startup_trials, multivariate=config.searcher.multivariate
        )
    return RandomSampler(seed=seed)


def distribution_of(entry: SearchKey) -> Any:
    """What Optuna draws a key's value from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if entry.choices:
        return CategoricalDistribution(list(dict.fromkeys(_coded(entry, value) for value in entry.choices)))
    if entry.quniform:
        return FloatDistribution(entry.quniform[0], entry.quniform[1], step=entry.quniform[2])
    assert entry.bounds is not None, "what is drawn has choices or a range"
    low, high = entry.bounds
    if entry.integer or entry.randint:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=entry.loguniform is not None)


def _suggest(trial: Any, key: str, entry: SearchKey) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    drawn = distribution_of(entry)
    if isinstance(drawn, IntDistribution):
        return trial.suggest_int(key, drawn.low, drawn.high)
    if not isinstance(drawn, CategoricalDistribution):
        return trial.suggest_float(key, drawn.low, drawn.high, step=drawn.step, log=drawn.log)
    value = trial.suggest_categorical(key, drawn.choices)
    return next(choice for choice in entry.choices or () if _same(_coded(entry, choice), value))


def _coded(entry: SearchKey, value: Any) -> Any:
    """A choice as Optuna takes it: lists and mappings as JSON."""
    return value if not entry.choices or isinstance(value, _PLAIN) else json.dumps(value, sort_keys=True)


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
