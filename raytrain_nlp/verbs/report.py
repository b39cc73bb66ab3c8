"""`report`: one self-contained HTML page of one run, several, or a sweep: verdict, curves, predictions, data, job."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import SweepPaths, read_json
from raytrain_nlp.reporting.history import History, read_history
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Run, at_hand, find_run
from raytrain_nlp.storage import open_storage
from raytrain_nlp.tracking.address import default_uri
from raytrain_nlp.tracking.mlflow_run import log_files

if TYPE_CHECKING:
    from raytrain_nlp.reporting.page import Shown

_REFRESH_S = 10


@dataclass(frozen=True)
class ReportResult(Result):
    """What was written."""

    page: str
    pictures: list[str]


def report(
    runs: Iterable[str | Path] | str | Path,
    output: str | Path | None = None,
    *,
    price: float | None = None,
    track: bool = False,
    observer: Observer | None = None,
) -> ReportResult:
    """Write a page about runs, and its pictures as PNG beside it.

    Args:
        runs: folders of runs; several are compared. Of a sweep: its trials, and its best trial as the run.
        output: the page; default: report.html in the first folder; in the current one, where that is in object storage.
        price: of an hour of all workers together, for the cost.
        track: put the page into each run's MLflow run, too, or the sweep's; what fails there is told.

    Raises:
        InputError: a folder is no run's, or the page cannot be written.

    Example:
        >>> import raytrain_nlp
        >>> raytrain_nlp.report("runs/quickstart").page  # doctest: +SKIP
        '...runs/quickstart/report.html'
    """
    observer = observer or Observer()
    _check(price)
    asked = _asked(runs)
    observer.stage("reading the runs")
    shown = _find(asked, price)
    observer.stage("drawing")
    from raytrain_nlp.reporting.page import build_page

    built = build_page(shown)
    page = (
        Path(output).expanduser()
        if output is not None
        else at_hand(asked[0]) / "report.html"
        if open_storage(asked[0]).shared
        else Path("report.html")
    )
    pictures = {page.with_name(f"{page.stem}-{name}.png"): content for name, content in built.pictures.items()}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(built.html, encoding="utf-8", errors="replace")
        for picture, content in pictures.items():
            picture.write_bytes(content)
    except OSError as error:
        raise InputError(
            Problem("--output", f"cannot be written ({page}: {error.strerror})", "Name another file.")
        ) from None
    if track:
        observer.stage("sending the page to MLflow")
        for found in {found for folder in asked for found in _tracked(at_hand(folder))}:
            if reason := log_files(*found, [page], "report"):
                observer.warn(f"{reason}. The page is {page}.")
    return ReportResult(str(page), list(map(str, pictures)))


@contextmanager
def serve_report(
    runs: Iterable[str | Path] | str | Path, port: int = 0, *, price: float | None = None
) -> Iterator[str]:
    """Serve the page on this machine alone while inside: made anew when it is asked for and a run has gone on, and
    loaded again by the browser as long as one goes on. Yields its address; leaving ends the server and its threads.

    Args:
        port: 0: any that is free.

    Raises:
        InputError: a folder is no run's, or the port is taken.
    """
    from raytrain_nlp.reporting.page import build_page
    from raytrain_nlp.reporting.server import served

    _check(price)
    asked = _asked(runs)
    _find(asked, price)  # what is wrong is said before anything is served

    def make() -> str:
        shown = _find(asked, price)
        states = [str(run.record.get("status")) for run in shown.runs] + [
            story.status for story in shown.sweeps.values()
        ]
        return build_page(shown, _REFRESH_S if "running" in states else None, stills=False).html

    def stamp() -> tuple[int, ...]:
        files = (file for folder in asked for file in _changing(at_hand(folder)) if file.exists())
        return tuple(file.stat().st_mtime_ns for file in files)

    with served(make, stamp, port) as address:
        yield address


def _tracked(folder: Path) -> list[tuple[str, str]]:
    """Where MLflow has the run of a folder, or its sweep, and under which id; empty where it has none."""
    run, sweep = find_run(folder), SweepPaths(folder.parent, folder.name)
    record = read_json(sweep.record)
    run_id = record.get("mlflow_run_id") if record else run.mlflow_run_id
    paths = sweep if record else run.paths
    database = run.storage if paths.store.shared else paths.database_folder
    return [(run.job.tracking.tracking_uri or default_uri(database), run_id)] if run_id else []


def _check(price: float | None) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(Problem("report", "needs matplotlib, not installed", "pip install 'raytrain-nlp[report]'."))
    if price is not None and price < 0:
        raise InputError(Problem("--price", f"is below 0 ({price:g})", "Give what an hour of all workers costs."))


def _asked(runs: Iterable[str | Path] | str | Path) -> list[str | Path]:
    return [runs] if isinstance(runs, (str, Path)) else list(runs)


def _changing(folder: Path) -> list[Path]:
    """Files that change while a run or a sweep goes on."""
    sweep = SweepPaths(folder.parent, folder.name)
    own = [sweep.record, sweep.run / "run.json", sweep.events, sweep.predictions]
    return own + sorted(sweep.trials.glob("*/trial.json")) + sorted(sweep.trials.glob("*/events.jsonl"))


def _find(asked: list[str | Path], price: float | None) -> Shown:
    """The runs of these folders, those of sweeps among them. A sweep that goes on need not have a best trial yet."""
    from raytrain_nlp.reporting.page import Shown
    from raytrain_nlp.reporting.sweep_story import SweepStory, read_sweep

    folders = [at_hand(run) for run in asked]
    names: list[str] = []
    runs: list[Run] = []
    histories: list[History] = []
    sweeps: dict[str, SweepStory] = {}
    for name, folder in zip(_names(folders), folders, strict=True):
        paths = SweepPaths(folder.parent, folder.name)
        story = read_sweep(paths) if paths.record.exists() else None
        if story:
            sweeps[name] = story
            if story.best is None and story.status == "running":
                continue
        run = find_run(paths.trial(story.best.number).run if story and story.best else folder)
        names.append(name)
        runs.append(run)
        histories.append(read_history(run))
    return Shown(names, runs, histories, sweeps, price)


def _names(folders: list[Path]) -> list[str]:
    """A name for each run that no other has."""
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
