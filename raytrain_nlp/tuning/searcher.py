"""The parts that Ray Tune's controller calls: a searcher that gives it points of the search space, a callback that
records its trials, and a stopper.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from raytrain_nlp.cluster.placement_groups import free_orphans
from raytrain_nlp.config.sweep.search_space import Point
from raytrain_nlp.paths import trial_name, trial_number
from raytrain_nlp.run.trial_records import FAILED, FINISHED, STOPPED, Book, TrialRecord
from raytrain_nlp.tuning.schedulers import LAST
from raytrain_nlp.tuning.study import Study
from raytrain_nlp.tuning.trial import NUMBER

_LOOK_S = 5.0
_TUNES_OWN = (
    LAST,
    "trial_id",
    "config",
    "done",
    "pid",
    "date",
    "timestamp",
    "hostname",
    "node_ip",
    "should_checkpoint",
    "iterations_since_restore",
)


class StudySearcher(Searcher):
    """Gives Tune the points of a `PointSource`. The `Bookkeeper` reports how trials end to the study."""

    def __init__(self, points: PointSource):
        super().__init__()
        self._points = points

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        point = self._points.next()
        return Searcher.FINISHED if point is None else point

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study's state is in its journal file."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class PointSource:
    """The points to try: those of interrupted trials, then new ones of the study, until `total` trials have begun."""

    def __init__(self, study: Study, interrupted: list[TrialRecord], begun: int, total: int):
        self._study, self._begun, self._total = study, begun, total
        self._waiting = [(record.number, record.params) for record in interrupted]

    def next(self) -> dict[str, Any] | None:
        """The next point, values by dotted key, with the trial's number under `NUMBER`; None at the end."""
        if self._waiting:
            number, point = self._waiting.pop(0)
        elif self._begun < self._total:
            self._begun += 1
            number, point = self._study.ask()
        else:
            return None
        return {**point, NUMBER: number}

    def all(self) -> list[dict[str, Any]]:
        """All that are left, for schedulers that begin with a population."""
        return list(iter(self.next, None))


class Bookkeeper(Callback):
    """A Tune callback that records each trial's start, results and end in the `Book` and the `Study`.

    Args:
        metric: the metric of the sweep.
        changed: called with a trial's record after each change.
        began: called with the record when a trial starts.
    """

    def __init__(
        self,
        book: Book,
        study: Study,
        metric: str,
        changed: Callable[[TrialRecord], None],
        began: Callable[[TrialRecord], None],
    ):
        self._book, self._study, self._metric = book, study, metric
        self._changed, self._began = changed, began
        self._looked = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, point = _identity(trial)
        before = self._book.trials.get(number)
        if before is not None and before.params != point:
            before.exploits.append({"after_step": before.history[-1]["step"] if before.history else 0, "params": point})
        record = self._book.begin(number, point)
        self._began(record)
        self._changed(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, _ = _identity(trial)
        if result.get("done") and "status" in result:
            return
        entry = {
            key: value
            for key, value in result.items()
            if key not in _TUNES_OWN and not key.startswith("time") and isinstance(value, (int, float))
        }
        self._book.add(number, entry)
        if isinstance(result.get(self._metric), (int, float)):
            self._study.report(number, result[self._metric], result["training_iteration"])
        self._changed(self._book.trials[number])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, _ = _identity(trial)
        last = trial.last_result or {}
        status = last.get("status", STOPPED)
        if last.get("wrong_metric"):
            self._book.wrong_metric = last["reason"]
        self._end(
            number,
            status,
            last.get("metrics") if status == FINISHED else None,
            last.get("reason") if status == FAILED else None,
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, _ = _identity(trial)
        error = trial.get_error()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["its process ended"]
        self._end(number, FAILED, None, f"{type(error).__name__}: {lines[0]}"[:1000])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Every `_LOOK_S` seconds, remove the placement groups that the workers of dead trials have left behind."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            free_orphans()

    def _end(self, number: int, status: str, metrics: dict[str, float] | None, reason: str | None) -> None:
        self._book.end(number, status, metrics, reason)
        self._study.tell(self._book.trials[number])
        self._changed(self._book.trials[number])


class NoUseToGoOn(Stopper):
    """Ends the sweep when more than `most` trials have failed, or evaluations do not have the sweep's metric."""

    def __init__(self, book: Book, most: int | None):
        self._book, self._most = book, most

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return (
            self._book.wrong_metric is not None
            or self._most is not None
            and len(self._book.with_status(FAILED)) > self._most
        )


def name_trial(trial: Any) -> str:
    """Tune's name of a new trial."""
    return trial_name(trial.config[NUMBER])


def _identity(trial: Any) -> tuple[int, Point]:
    return trial_number(str(trial)), {key: value for key, value in trial.config.items() if key != NUMBER}
