"""What a sweep leaves: the table of its trials, the best job, its model, and what the Python API returns."""

from __future__ import annotations

import csv
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.config.sweep.search_space import tie
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.results import Result
from raytrain_nlp.run.trial_records import FAILED, FINISHED, STOPPED, Book, TrialRecord
from raytrain_nlp.storage.atomic import copy_folder, replace_folder, replacing

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SweepResult(Result):
    """A finished sweep."""

    sweep_dir: str
    best_trial: int
    best_params: dict[str, Any]
    best_metrics: dict[str, float]
    best_job: str
    """A job file that `train` runs as it is."""
    model_dir: str
    """The best trial's model."""
    trials: dict[str, int]
    """Status -> number of trials."""
    mlflow_run_id: str | None
    tokenized_rows: int = 0
    """Rows tokenized for the whole sweep; 0 where all were found prepared."""
    model_version: str | None = None
    """Version of the registered model."""
    tracking_uri: str | None = None
    """Where MLflow has the sweep, without a password."""
    table: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """A row for each trial, as in trials.csv."""

    def dataframe(self) -> pandas.DataFrame:
        """The trials as a table."""
        import pandas

        return pandas.DataFrame(self.table)

    def to_dict(self) -> dict[str, Any]:
        """All values but those of single trials."""
        values = super().to_dict()
        del values["table"]
        return values

    def _repr_html_(self) -> str:
        """The result, and below it the trials."""
        return super()._repr_html_() + self.dataframe().to_html(index=False)


def table_of(sweep: Sweep, book: Book) -> list[dict[str, Any]]:
    """A row for each trial: how it ended, its values with ties, its figures; the same columns in all."""
    space, metric = sweep.config.search_space, sweep.config.metric
    figures = sorted(
        {key for record in book.trials.values() for key in record.metrics if key.startswith("eval_")} | {metric}
    )
    rows = []
    for _, record in sorted(book.trials.items()):
        ties = {key: tie(sweep.values, record.params, entry.multiply) for key, entry in space.items() if entry.multiply}
        last = record.history[-1] if record.history else {}
        rows.append(
            {
                "trial": record.number,
                "status": record.status,
                **{key: {**record.params, **ties}.get(key) for key in space},
                **{key: record.metrics.get(key) if record.status == FINISHED else last.get(key) for key in figures},
                "steps": last.get("step", 0),
                "evaluations": len(record.history),
                "attempts": record.attempts,
                "seconds": round(record.ended - record.started, 1) if record.ended and record.started else None,
                "mlflow_run_id": record.mlflow_run_id,
                "reason": record.reason,
            }
        )
    return rows


def write_table(rows: list[dict[str, Any]], paths: SweepPaths) -> None:
    with replacing(paths.table, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)


def write_best(sweep: Sweep, paths: SweepPaths, best: TrialRecord) -> None:
    """The best job as a file, and its model as `model/`, replaced as a whole."""
    values = {**sweep.trial_values(best.params), "name": f"{sweep.config.name[:95]}-best"}
    head = f"# Trial {best.number} of the sweep {sweep.config.name}: {sweep.config.metric} {best.value(sweep.config.metric):.6g}.\n"  # noqa: E501
    with replacing(paths.best) as file:
        file.write(head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    paths.store.fetch_tree(paths.trial(best.number).model)
    source, staging = paths.trial(best.number), paths.run / f".model-{uuid.uuid4().hex[:8]}"
    copy_folder(source.model, staging)
    replace_folder(staging, paths.model)


def counts_of(book: Book) -> dict[str, int]:
    return {status: len(book.with_status(status)) for status in (FINISHED, STOPPED, FAILED)}
