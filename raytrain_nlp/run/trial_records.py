"""The records of a sweep's trials, each in `trial.json` in the folder of its run, from which a sweep is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import TRIAL, SweepPaths, read_json, trial_name, write_json
from raytrain_nlp.redaction import masked_values

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass
class TrialRecord:
    """One trial, as the driver knows it."""

    number: int
    params: dict[str, Any]
    status: str = RUNNING
    """running, finished, stopped (by the scheduler), failed."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Each evaluation: training_iteration, step, epoch and its figures."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the model it exported."""
    reason: str | None = None
    """Why it failed."""
    attempts: int = 0
    """Times it was started."""
    exploits: list[dict[str, Any]] = field(default_factory=list)
    """pbt: for each exploit of another trial, `after_step` (this trial's last evaluated step) and the new `params`."""
    started: float | None = None
    ended: float | None = None
    mlflow_run_id: str | None = None

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def ended_well(self) -> bool:
        return self.status in (FINISHED, STOPPED)

    def value(self, metric: str) -> float | None:
        """The metric of the exported model; of a trial that has not finished, that of its last evaluation with one."""
        if self.status == FINISHED:
            return self.metrics.get(metric)
        return next((entry[metric] for entry in reversed(self.history) if metric in entry), None)


class Book:
    """All trials of a sweep, in order."""

    def __init__(self, paths: SweepPaths):
        self._paths = paths
        self.wrong_metric: str | None = None
        """Set once a trial's evaluation does not have the sweep's metric: the reason, as part of a sentence."""
        self.trials: dict[int, TrialRecord] = {record.number: record for record in read_trials(paths)}

    def begin(self, number: int, params: dict[str, Any]) -> TrialRecord:
        """Record that a trial starts or continues, with these values."""
        record = self.trials.setdefault(number, TrialRecord(number, params))
        record.params, record.status, record.ended = dict(params), RUNNING, None
        record.attempts += 1
        record.started = record.started or time.time()
        self.save(record)
        return record

    def add(self, number: int, entry: dict[str, Any]) -> None:
        """Record an evaluation of a trial."""
        record = self.trials[number]
        record.history.append(entry)
        self.save(record)

    def end(self, number: int, status: str, metrics: dict[str, float] | None = None, reason: str | None = None) -> None:
        record = self.trials[number]
        record.status, record.reason, record.ended = status, reason, time.time()
        record.metrics = metrics or {}
        self.save(record)

    def save(self, record: TrialRecord) -> None:
        write_json(self._paths.trial(record.number).run / TRIAL, masked_values(asdict(record)))

    def with_status(self, *statuses: str) -> list[TrialRecord]:
        return [record for record in self.trials.values() if record.status in statuses]

    def best(self, metric: str, mode: str) -> TrialRecord | None:
        """The finished trial with the best model; of equal ones the first."""
        scored = [
            (value, record)
            for record in self.with_status(FINISHED)
            if (value := record.value(metric)) is not None and math.isfinite(value)
        ]
        if not scored:
            return None
        sign = 1 if mode == "max" else -1
        return max(scored, key=lambda pair: (sign * pair[0], -pair[1].number))[1]


def read_trials(paths: SweepPaths) -> Iterator[TrialRecord]:
    """The records in a sweep's folder, in order. Raises `InputError` where one is damaged."""
    known = {entry.name for entry in fields(TrialRecord)}
    for file in sorted(paths.trials.glob(f"trial-*/{TRIAL}")):
        values = read_json(file)
        number = values.get("number") if isinstance(values, dict) else None
        if not isinstance(number, int) or trial_name(number) != file.parent.name:
            what = f"is not the record of {file.parent.name}"
            raise InputError(Problem(str(file), what, "Restore the file, or start again with --overwrite."))
        yield TrialRecord(**{key: value for key, value in values.items() if key in known})
