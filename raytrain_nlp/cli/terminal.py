"""What the command line shows: a live line on standard error while a run goes on, and a table at its end."""

from __future__ import annotations

import shlex
import time
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raytrain_nlp.redaction import masked
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.verbs.train import TrainResult

T = TypeVar("T", bound="TerminalObserver")
_MOST_CLASSES = 12
"""Classes up to which the confusion matrix is printed."""
_WIDEST = 10_000
"""Characters of a line of a table at most."""


class TerminalObserver(Observer):
    """Shows one line: the stage, later step, epoch, loss, tokens/s and time left. Without a terminal it prints a line
    every ten seconds.

    Args:
        verbose: no live line, as libraries print as well.
    """

    _PLAIN_S = 10.0

    def __init__(self, verbose: bool):
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live = (
            Live(console=self._console, refresh_per_second=4, transient=True)
            if self._console.is_terminal and not verbose
            else None
        )
        self._first: tuple[int, float] | None = None
        self._printed = 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since this observer was created."""
        return time.monotonic() - self._began

    def __enter__(self: T) -> T:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def stage(self, text: str) -> None:
        self._show(f"{text} ...", at_once=True)

    def tell(self, text: str) -> None:
        self._console.print(masked(text))

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {masked(text)}")

    def event(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if event.get("phase") == "worker" and self._first is not None:
            self._first = None
            self._console.print("the workers have ended; others go on from the newest checkpoint")
        elif kind == "failure":
            ranks = ", ".join(map(str, event["ranks"]))
            self._console.print(f"rank {ranks} has failed ({event['error']})")
        elif kind == "start":
            self.stage(f"{event['world_size']} workers are up, loading the model")
        elif kind == "resume":
            self._first = None
            self._console.print(f"resuming at step {event['step']} with {event['world_size']} workers")
        elif kind in ("notice", "silent_error", "straggler"):
            self.warn(event["text"])
        elif kind == "log" and any(key.startswith("eval_") for key in event["metrics"]):
            figures = {
                key: value
                for key, value in event["metrics"].items()
                if key.startswith("eval_") and "per_second" not in key and "runtime" not in key
            }
            self._console.print(
                f"step {event['step']}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            )

    def progress(self, progress: dict[str, Any]) -> None:
        step, total = progress["step"], progress["total"]
        now = time.monotonic()
        if self._first is None or step < self._first[0]:
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        parts = {"step": f"step {step}/{total}"}
        if "epoch" in progress:
            parts["epoch"] = f"epoch {progress['epoch']:.2f}"
        if "loss" in progress:
            parts["loss"] = f"loss {progress['loss']:.4f}"
        if "tokens_per_second" in progress:
            parts["rate"] = f"{progress['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in progress:
            parts["mfu"] = f"MFU {progress['mfu']:.0%}"
        if done > 0 and step < total:
            parts["left"] = f"{_duration((total - step) * seconds / done)} left"
        self._show(_fitting(parts, self._console.width if self._live else None))

    def _show(self, line: str, at_once: bool = False) -> None:
        if self._live:
            self._live.update(Text(line))
        elif at_once or time.monotonic() - self._printed >= self._PLAIN_S:
            self._printed = time.monotonic()
            self._console.print(line)


def _fitting(parts: dict[str, str], width: int | None) -> str:
    """The parts as one line of at most `width` characters (None: any number): the least important are left out, none is
    cut.
    """
    kept = dict(parts)
    for name in ("mfu", "epoch", "rate", "left", "loss"):
        if width is None or len("  ".join(kept.values())) < width:
            break
        kept.pop(name, None)
    return "  ".join(kept.values())


def print_result(result: TrainResult, seconds: float | None = None) -> None:
    """Print the table at the end of a run, and the command that comes next.

    Args:
        seconds: duration of the command.
    """
    rows = {
        "run": result.run_dir,
        "model": result.model_dir,
        "MLflow run": result.mlflow_run_id or "-",
        **({"MLflow page": mlflow_page(uri)} if (uri := result.tracking_uri) else {}),
        **({"time": _duration(seconds)} if seconds is not None else {}),
        "steps": f"{result.global_step} ({result.epoch:.4g} epochs, {result.world_size} workers)",
        **({"ended early": result.ended_early} if result.ended_early else {}),
        "rows": ", ".join(f"{split} {count}" for split, count in result.rows.items()),
        **({"features": _counts(result.features)} if result.features else {}),
        "rows tokenized now": str(result.tokenized_rows),
        **(
            {"rows left out": ", ".join(f"{split} {count}" for split, count in result.left_out.items())}
            if any(result.left_out.values())
            else {}
        ),
        "rows in quarantine": ", ".join(f"{split} {count}" for split, count in result.bad_rows.items()),
        **(
            {"rows cut": ", ".join(f"{split} {count}" for split, count in result.cut_rows.items())}
            if any(result.cut_rows.values())
            else {}
        ),
        **({"rows dropped an epoch": str(result.dropped_rows)} if result.dropped_rows else {}),
        **({"best step": str(result.best_step)} if result.best_step else {}),
        **({"restarts": str(result.restarts)} if result.restarts else {}),
        **({"majority_accuracy": f"{result.majority_accuracy:.4f}"} if result.majority_accuracy is not None else {}),
        **{key: _figure(value) for key, value in sorted(result.metrics.items())},
    }
    print_rows(rows)
    run = shlex.quote(result.run_dir)
    print_next(f"raytrain-nlp predict {run} --input FILE --output FILE", "also report, evaluate, export")


def mlflow_page(uri: str) -> str:
    """How to open a run in MLflow: the address of its server, or the command that serves its database.

    Args:
        uri: the tracking URI.
    """
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def print_next(command: str, remark: str = "") -> None:
    """Print the command that comes next, on a line of its own that can be copied."""
    print_rows({"next:": f"{command}{f'   # {remark}' if remark else ''}"})


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in counts.items())


def print_plan(report: Any) -> None:
    """Print the table of `check` (a `CheckReport`)."""
    print_rows(report.rows_for_people())


def print_rows(rows: dict[str, str]) -> None:
    """Print names and texts, a line each. Lines are not wrapped, however long, so that paths can be copied."""
    console, width = Console(soft_wrap=True, highlight=False, markup=False), max(map(len, rows), default=0)
    for name, value in rows.items():
        console.print(f"{name:<{width}}  {value}")


def _print_table(table: Table) -> None:
    """Print a table in its full width, even if the terminal is narrower and wraps its lines."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.width = max(
        console.width, Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    )
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:.4f}" if value != int(value) else str(int(value))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def print_evaluation(result: Any) -> None:
    """Print an `EvaluateResult`: the metrics, a line for each class, and the confusion matrix of few classes."""
    print_rows(
        {
            "run": result.run_dir,
            "weights": result.weights,
            **({"rows": str(result.rows), "rows in quarantine": str(result.bad_rows)} if result.rows else {}),
            **({"scores": result.scores} if result.scores else {}),
            **{key: _figure(value) for key, value in sorted(result.metrics.items())},
        }
    )
    if classes := result.report.get("classes"):
        table = Table("", "precision", "recall", "f1-score", "support", box=None, pad_edge=False)
        for name, figures in classes.items():
            if isinstance(figures, dict):
                table.add_row(
                    name,
                    *(f"{figures[key]:.4f}" for key in ("precision", "recall", "f1-score")),
                    f"{figures['support']:.0f}",
                )
        _print_table(table)
    if (matrix := result.report.get("confusion_matrix")) and len(matrix) <= _MOST_CLASSES:
        table = Table("true \\ predicted", *result.labels, box=None, pad_edge=False)
        for label, row in zip(result.labels, matrix, strict=True):
            table.add_row(label, *map(str, row))
        _print_table(table)
