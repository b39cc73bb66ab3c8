"""`report`: one self-contained HTML page of one run, several, or a sweep: curves, figures, data, job."""

from __future__ import annotations

import base64
import csv
import html
import importlib.util
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from raytrain_nlp.config import public_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.reporting.curves import Curve, draw_curves
from raytrain_nlp.reporting.history import History, read_history
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Run, at_hand, find_run
from raytrain_nlp.storage import open_storage

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2530; background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem } p { max-width: 46rem; margin: .3rem 0 .8rem; color: #4a5565 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; display: block; overflow-x: auto }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e7ec; vertical-align: top } th { font-weight: 600; color: #4a5565 }
figure { margin: .6rem 0 } img { max-width: 100%; height: auto } pre { background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: .85rem }
summary { cursor: pointer; font-weight: 600 } .warn { color: #8a4b00 }
"""  # noqa: E501


@dataclass(frozen=True)
class ReportResult:
    """What was written."""

    page: str
    pictures: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def report(
    runs: Iterable[str | Path] | str | Path, output: str | Path | None = None, *, observer: Observer | None = None
) -> ReportResult:
    """Write a page about runs, and its pictures as PNG beside it.

    Args:
        runs: folders of runs; several are compared. Of a sweep: its trials, and its best trial as the run.
        output: the page; default: report.html in the first folder; in the current one, where that is in object storage.

    Raises:
        InputError: a folder is no run's, or the page cannot be written.

    Example:
        >>> import raytrain_nlp
        >>> raytrain_nlp.report("runs/quickstart").page  # doctest: +SKIP
        '...runs/quickstart/report.html'
    """
    observer = observer or Observer()
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(Problem("report", "needs matplotlib, not installed", "pip install 'raytrain-nlp[sweep]'."))
    asked = [runs] if isinstance(runs, (str, Path)) else list(runs)
    folders = [at_hand(run) for run in asked]
    found = [find_run(folder) for folder in folders]
    names = _names(folders)
    observer.stage("reading the runs")
    histories = [read_history(run) for run in found]
    page = (
        Path(output).expanduser()
        if output is not None
        else folders[0] / "report.html"
        if open_storage(asked[0]).shared
        else Path("report.html")
    )
    observer.stage("drawing")
    curves = draw_curves(names, histories)
    sweeps = [SweepPaths(folder.parent, folder.name) for folder in folders if (folder / "sweep.json").exists()]
    text = _page(names, found, histories, curves, sweeps)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
        pictures = [page.with_name(f"{page.stem}-{curve.name}.png") for curve in curves]
        for curve, picture in zip(curves, pictures, strict=True):
            picture.write_bytes(curve.png)
    except OSError as error:
        raise InputError(
            Problem("--output", f"cannot be written ({page}: {error.strerror})", "Name another file.")
        ) from None
    return ReportResult(str(page), [str(picture) for picture in pictures])


def _names(folders: list[Path]) -> list[str]:
    """A name for each run that no other has."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def _page(
    names: list[str], runs: list[Run], histories: list[History], curves: list[Curve], sweeps: list[SweepPaths]
) -> str:
    title = names[0] if len(names) == 1 else f"{len(names)} runs compared"
    parts = [f"<h1>{html.escape(title)}</h1>", "<h2>Result</h2>", _table(*_summary(names, runs, histories))]
    for name, history in zip(names, histories, strict=True):
        if history.resumed:
            steps = ", ".join(map(str, history.resumed))
            parts.append(
                f"<p>{html.escape(name)} was interrupted and went on from step {steps}; the dashed lines mark "
                f"where.</p>"
            )
    for sweep in sweeps:
        parts += _sweep(sweep)
    for curve in curves:
        image = base64.b64encode(curve.png).decode()
        parts.append(f"<h2>{html.escape(curve.title)}</h2><p>{html.escape(curve.says)}</p>")
        parts.append(f'<figure><img alt="{html.escape(curve.title)}" src="data:image/png;base64,{image}"></figure>')
    parts += [
        "<h2>Data</h2>",
        "<p>Rows that could not be used are kept in the run's quarantine.jsonl, each with its place and the "
        "reason.</p>",
    ]
    parts.append(_table(*_data(names, runs)))
    for name, run, history in zip(names, runs, histories, strict=True):
        job = yaml.safe_dump(public_values(run.job), sort_keys=False, allow_unicode=True)
        parts.append(
            f"<h2>{html.escape(name)}</h2><details><summary>The job</summary><pre>{html.escape(job)}</pre></details>"
        )
        versions = "\n".join(f"{key} {value}" for key, value in sorted(run.record.get("versions", {}).items()))
        parts.append(f"<details><summary>Versions</summary><pre>{html.escape(versions)}</pre></details>")
        parts += [f'<p class="warn">{html.escape(text)}</p>' for text in history.notices[:20]]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _summary(names: list[str], runs: list[Run], histories: list[History]) -> tuple[list[str], list[list[str]]]:
    """A line for each figure, a column for each run."""
    columns = []
    for run, history in zip(runs, histories, strict=True):
        steps = max((step for line in history.figures.values() for step in line), default=0)
        metrics = {
            key: value
            for key, value in run.result.get("metrics", {}).items()
            if key.startswith("eval_") and "second" not in key and "runtime" not in key
        }
        latest = {name: history.line(name)[1][-1] for name in history.evaluated}
        majority = run.result.get("majority_accuracy")
        columns.append(
            {
                "how it ended": str(run.record.get("status", "unknown")),
                "task": run.job.task.type,
                "model": run.job.model.name_or_path or f"{run.job.model.model_type} from scratch",
                "workers": f"{run.job.workers.num_workers}, ZeRO "
                f"{run.job.deepspeed.zero_stage}{', LoRA' if run.job.lora else ''}",
                "steps": f"{steps:,}",
                "time": _duration(history.seconds),
                "restarts": str(len(history.resumed)),
                **{key: _figure(value) for key, value in sorted((metrics or latest).items())},
                **(
                    {"accuracy of always answering the most frequent label": _figure(majority)}
                    if majority is not None
                    else {}
                ),
            }
        )
    keys = dict.fromkeys(key for column in columns for key in column)
    return ["", *names], [[key, *(column.get(key, "") for column in columns)] for key in keys]


def _data(names: list[str], runs: list[Run]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, run in zip(names, runs, strict=True):
        given = public_values(run.job)["data"]
        sets = given.get("validation")
        for split in (
            ("train", *(f"validation.{name}" for name in sets)) if isinstance(sets, dict) else ("train", "validation")
        ):
            counts = [run.result.get(key, {}).get(split) for key in ("rows", "bad_rows", "left_out", "cut_rows")]
            features = run.result.get("features", {}).get(split)
            lengths = run.record.get("lengths", {}).get(split, {})
            tokens = (
                f"{lengths['p50']:.0f} (95 % of rows up to {lengths['p95']:.0f}, longest {lengths['p100']:.0f})"
                if lengths
                else ""
            )
            if lengths.get("cut"):
                tokens += (
                    f"; before cutting, those cut had {lengths['mean_before']:.0f} on average, the longest "
                    f"{lengths['longest_before']:.0f}"
                )
            tokens += f"; {features:,} features" if features else ""
            source = sets[split.partition(".")[2]] if "." in split else given.get(split)
            if source:
                rows.append(
                    [name, split, str(source), *("" if count is None else f"{count:,}" for count in counts), tokens]
                )
    return ["run", "split", "source", "rows used", "in quarantine", "left out", "cut", "tokens of a row, median"], rows


def _sweep(sweep: SweepPaths) -> list[str]:
    """The trials' table and the sweep's own pictures."""
    parts = [
        "<h2>Trials</h2>",
        "<p>Each line is one run with other values; the result above and the curves below are those of the best "
        "one.</p>",
    ]
    if sweep.table.exists():
        with sweep.table.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        kept = [
            i
            for i, name in enumerate(header)
            if "second" not in name and name not in ("eval_runtime", "eval_samples", "mlflow_run_id", "attempts")
        ]
        parts.append(_table([header[i] for i in kept], [[_short(row[i]) for i in kept] for row in rows]))
    for picture in sorted(sweep.plots.glob("*.png")) if sweep.plots.is_dir() else ():
        image = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<figure><img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{image}"></figure>')
    return parts


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _short(text: str) -> str:
    try:
        return _figure(float(text)) if "." in text or "e" in text else text
    except ValueError:
        return text if len(text) <= 120 else f"{text[:117]}..."


def _figure(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
