"""A sweep in MLflow: one parent run, and a nested run for each trial. The sweep's driver sends them all, from the files
of the trials' runs.

So MLflow runs are also closed where the scheduler kills a trial, and MLflow is imported once, not in each trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain_nlp.config import load_job, public_values
from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.run.record import flatten
from raytrain_nlp.run.trial_records import FAILED, RUNNING, Book, TrialRecord
from raytrain_nlp.tracking.address import default_uri
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.tracking.tables import log_table
from raytrain_nlp.tracking.tracker import Tracker
from raytrain_nlp.tuning.results import table_of
from raytrain_nlp.verbs.train import run_params

_ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_POLL_S = 0.1


class Tree:
    """The MLflow runs of a sweep. A tracker's errors do not end it; the next `--resume` sends what is missing."""

    def __init__(self, sweep: Sweep, paths: SweepPaths, book: Book, text: str, warn: Callable[[str], None]):
        self._sweep, self._paths, self._book, self._warn = sweep, paths, book, warn
        self._config = sweep.tracking
        self._events = EventLog(paths.events)
        params = flatten(
            sweep.config.model_dump(mode="json", exclude={"job", "tracking"}, by_alias=True, exclude_none=True)
        )
        self._parent = Tracker(paths, self._config, params, text, warn)
        self._children: dict[int, Tracker] = {}
        self._ended = 0

    @property
    def run_id(self) -> str | None:
        return self._parent.run_id

    @property
    def uri(self) -> str:
        """Where MLflow has the runs, without a password."""
        return masked_address(self._parent.uri)

    def start(self) -> Tree:
        self._parent.start()
        return self

    def follow(self, record: TrialRecord) -> None:
        """Begin to send a trial's metrics, as soon as the parent run has an id."""
        if record.number not in self._children and self.run_id:
            self._children[record.number] = self._child(record).start()

    def end(self, record: TrialRecord, best: float | None) -> None:
        """A trial has ended; its child closes in a thread of its own."""
        self._ended += 1
        if best is not None:
            self._events.write(
                "log",
                step=self._ended,
                metrics={f"best/{self._sweep.config.metric}": best, "trials/ended": self._ended},
            )
        self.follow(record)
        if child := self._children.get(record.number):
            child.finish(_ENDS[record.status])

    def close(self, status: str, best: TrialRecord | None, artifacts: list[Path]) -> str | None:
        """Wait for what is left, tag the best trial, attach artifacts, end the parent. Returns its run id."""
        self._wait_for_parent()
        for record in self._book.trials.values():
            self.follow(record)
            if child := self._children.get(record.number):
                child.close(_ENDS.get(record.status, "KILLED"))
                if child.run_id != record.mlflow_run_id:
                    record.mlflow_run_id = child.run_id
                    self._book.save(record)
        if self.run_id:
            self._guarded(lambda client: self._decorate(client, best, artifacts))
        self._parent.close(status)
        return self.run_id

    def end_at_once(self, status: str) -> None:
        """End the MLflow runs of sweep and trials in a process that is about to exit, and so can wait only briefly."""
        trackers = [*self._children.values(), self._parent]
        for tracker in trackers:
            tracker.finish(status)
        for tracker in trackers:
            tracker.end_at_once(status)

    def _child(self, record: TrialRecord) -> Tracker:
        paths = self._paths.trial(record.number)
        job = load_job(
            {**self._sweep.trial_values(record.params), "name": record.name, "storage_path": str(self._paths.trials)}
        )
        tags = {
            **self._config.tags,
            "mlflow.parentRunId": self.run_id,
            "raytrain_nlp.trial": str(record.number),
            **{f"searched.{key}": str(value) for key, value in record.params.items()},
        }
        update = {"tracking_uri": self._config.tracking_uri or default_uri(self._paths.database_folder), "tags": tags}
        params = {**run_params(job), **record.params, "name": f"{self._paths.run.name}/{record.name}"}
        return Tracker(paths, self._config.model_copy(update=update), params, _dump(public_values(job)), self._warn)

    def _wait_for_parent(self) -> None:
        deadline = time.monotonic() + self._config.close_timeout_s
        while not self.run_id and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _decorate(self, client: Any, best: TrialRecord | None, artifacts: list[Path]) -> None:
        for record in self._book.trials.values():
            if record.mlflow_run_id:
                tags = {"raytrain_nlp.status": record.status, "raytrain_nlp.attempts": str(record.attempts)}
                tags |= {"raytrain_nlp.best": "true"} if best is record else {}
                tags |= (
                    {"raytrain_nlp.reason": record.reason[:5000]} if record.status == FAILED and record.reason else {}
                )
                tags |= {"raytrain_nlp.exploits": str(len(record.exploits))} if record.exploits else {}
                for key, value in tags.items():
                    client.set_tag(record.mlflow_run_id, key, value)
        counts = {status: len(self._book.with_status(status)) for status in ("finished", "stopped", "failed", RUNNING)}
        for key, told in {
            **counts,
            **({"best_trial": best.number, "best_run_id": best.mlflow_run_id} if best else {}),
        }.items():
            client.set_tag(self.run_id, f"raytrain_nlp.{key}", str(told))
        log_table(client, str(self.run_id), table_of(self._sweep, self._book), "trials.json")
        for path in artifacts:
            client.log_artifact(self.run_id, str(path), "plots" if path.suffix == ".png" else None)

    def _guarded(self, action: Callable[[Any], None]) -> None:
        from mlflow import MlflowClient

        try:
            action(MlflowClient(tracking_uri=self._parent.uri))
        except Exception as error:  # noqa: BLE001 - a tracker never ends a sweep
            shown = masked_address(self._parent.uri)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(self._parent.uri, shown)[
                :200
            ]
            self._warn(
                f"the tracker ({shown}) fails: {reason}. Tags and artifacts of the sweep may be missing; its files are "
                f"in {self._paths.run}."
            )


def _dump(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
