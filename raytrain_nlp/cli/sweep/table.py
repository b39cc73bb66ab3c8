"""Shows a sweep in the terminal: a live table of its trials (plain lines if there is no terminal), and a table at the
end.
"""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytrain_nlp.cli.terminal import TerminalObserver, mlflow_page, print_next, print_rows
from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.run.trial_records import FAILED, RUNNING, TrialRecord
from raytrain_nlp.tuning.observer import SweepObserver
from raytrain_nlp.tuning.results import SweepResult

_ROWS = 30
"""Trials in the live table at most."""


class TerminalSweepObserver(TerminalObserver, SweepObserver):
    """Shows the newest trials of a sweep, with their hyperparameters and metrics."""

    _sweep: Sweep
    """The sweep; set by `begin`."""

    def begin(self, sweep: Sweep, concurrent: int) -> None:
        self._sweep = sweep
        self.stage(f"{sweep.num_trials} trials, {concurrent} at a time")

    def trial(self, record: TrialRecord, records: list[TrialRecord]) -> None:
        if self._live:
            self._live.update(self._table(records))
        else:
            self._console.print(self._line(record))

    def _line(self, record: TrialRecord) -> str:
        if record.status == RUNNING and not record.history:
            return f"{record.name} starts: {_params(record.params)}"
        figure = _figure(record.value(self._sweep.config.metric))
        step = record.history[-1]["step"] if record.history else 0
        told = (
            f" ({record.reason})"
            if record.status == FAILED
            else f", {self._sweep.config.metric} {figure} at step {step}"
        )
        return f"{record.name} {record.status}{told}"

    def _table(self, records: list[TrialRecord]) -> Table:
        config = self._sweep.config
        keys = [key for key, entry in config.search_space.items() if entry.searched]
        left = self._sweep.num_trials - len(records)
        table = Table(
            "trial",
            "status",
            *keys,
            "step",
            config.metric,
            title=f"{config.name}: {left} to come",
            box=None,
            pad_edge=False,
        )
        for record in records[-_ROWS:]:
            step = str(record.history[-1]["step"]) if record.history else "-"
            cells = [
                str(record.number),
                record.status,
                *(_value(record.params.get(key)) for key in keys),
                step,
                _figure(record.value(config.metric)),
            ]
            table.add_row(*map(Text, cells))
        return table


def print_sweep(result: SweepResult) -> None:
    """Print the table of all trials, and the files and figures of the sweep."""
    if result.table:
        left_out = (
            "mlflow_run_id",
            "attempts",
            "evaluations",
            "eval_runtime",
            "eval_samples",
            "eval_samples_per_second",
            "eval_steps_per_second",
        )
        shown = [
            name
            for name in result.table[0]
            if name not in left_out and any(row[name] is not None for row in result.table)
        ]
        table = Table(box=None, pad_edge=False)
        for name in shown:
            table.add_column(name.rpartition(".")[2], no_wrap=True)
        for row in result.table:
            table.add_row(*(Text(_value(row[name])) for name in shown))
        Console(soft_wrap=True, highlight=False, width=max(Console().width, 16 * len(shown))).print(table)
    print_rows(
        {
            "sweep": result.sweep_dir,
            "trials": ", ".join(f"{count} {status}" for status, count in result.trials.items()),
            "best trial": f"{result.best_trial}: {_params(result.best_params)}",
            "best job": result.best_job,
            "model": result.model_dir,
            **({"model version": result.model_version} if result.model_version else {}),
            "MLflow run": result.mlflow_run_id or "-",
            **({"MLflow page": mlflow_page(result.tracking_uri)} if result.tracking_uri else {}),
            "rows tokenized": str(result.tokenized_rows),
            **{key: _figure(value) for key, value in sorted(result.best_metrics.items())},
        }
    )
    print_next(
        f"raytrain-nlp report {shlex.quote(result.sweep_dir)}", "also predict, evaluate, export: of its best trial"
    )


def _params(params: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
