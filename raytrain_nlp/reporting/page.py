"""The page: sections in the order in which one reads them, the verdict first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import yaml

from raytrain_nlp.config import public_values
from raytrain_nlp.reporting import predictions, tables
from raytrain_nlp.reporting.charts import Panel
from raytrain_nlp.reporting.curves import run_panels
from raytrain_nlp.reporting.drawings import Drawings
from raytrain_nlp.reporting.history import History
from raytrain_nlp.reporting.limits import RULES
from raytrain_nlp.reporting.markup import STYLE, cell, duration, esc, folded, heading, still, table
from raytrain_nlp.reporting.sweep_panels import sweep_panels
from raytrain_nlp.reporting.sweep_story import SweepStory, next_steps
from raytrain_nlp.reporting.verdict import best_of, judge
from raytrain_nlp.run.saved_run import Run

_NOTICES = 20
_FIRST = ("loss", "evaluation")
"""Panels that everybody looks at; the others follow the predictions."""


@dataclass(frozen=True)
class Shown:
    """What a page is about: runs, and sweeps of which each has its best trial among the runs, where there is one."""

    names: list[str]
    """Of the runs."""
    runs: list[Run]
    histories: list[History]
    sweeps: dict[str, SweepStory]
    """By name."""
    price: float | None = None
    """Of an hour of all workers together."""

    @property
    def title(self) -> str:
        names = list(dict.fromkeys([*self.names, *self.sweeps]))
        return names[0] if len(names) == 1 else f"{len(names)} runs compared"


@dataclass(frozen=True)
class Page:
    """A page, and the pictures in it by name."""

    html: str
    pictures: dict[str, bytes]


def build_page(shown: Shown, refresh_s: int | None = None, stills: bool = True) -> Page:
    """The whole page.

    Args:
        refresh_s: the browser is to load it again after so many seconds.
        stills: as `Drawings`.
    """
    sweeping = {
        name: [replace(panel, name=f"{panel.name}-{number}" if number else panel.name) for panel in _panels_of(story)]
        for number, (name, story) in enumerate(shown.sweeps.items())
    }
    running = run_panels(shown.names, shown.histories)
    panels = [panel for found in sweeping.values() for panel in found] + running
    drawings = Drawings(panels, stills)
    parts = [f"<h1>{esc(shown.title)}</h1>", *_verdicts(shown)]
    if shown.runs:
        says = "Of a sweep those of its best trial." if shown.sweeps else ""
        parts += [heading("Result", says), tables.summary(shown.names, shown.runs, shown.histories)]
    for name, story in shown.sweeps.items():
        parts += [*_sweep(name, story), *map(drawings.html, sweeping[name])]
    parts += (
        [heading("What differs", "Keys of the jobs."), found]
        if (found := tables.differing_keys(shown.names, shown.runs))
        else []
    )
    first = [panel for panel in running if panel.name in _FIRST]
    parts += [*map(drawings.html, first), *_predictions(shown)]
    parts += map(drawings.html, [panel for panel in running if panel not in first])
    if shown.runs:
        parts += _sections(shown)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + (f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else "")
        + f"<title>{esc(shown.title)}</title><style>{STYLE}</style>"
    )
    body = "".join(parts) + drawings.script
    page = f'<!doctype html>\n<html lang="en"><head>{head}{drawings.head}</head><body>{body}</body></html>\n'
    return Page(page, drawings.pictures)


def _panels_of(story: SweepStory) -> list[Panel]:
    if story.config is None:
        return []
    best = story.best.number if story.best else None
    return sweep_panels(story.config, story.trials, best, story.weights)


def _verdicts(shown: Shown) -> list[str]:
    parts = [f'<p class="verdict">{esc(story.verdict())}</p>' for story in shown.sweeps.values()]
    several = len(shown.names) > 1
    verdicts = [judge(run, history) for run, history in zip(shown.runs, shown.histories, strict=True)]
    if best := best_of(shown.names, verdicts):
        parts.append(f'<p class="verdict">{esc(best)}</p>')
    for name, found, history in zip(shown.names, verdicts, shown.histories, strict=True):
        before = f"<b>{esc(name)}:</b> " if several else "<b>Its best trial:</b> " if name in shown.sweeps else ""
        parts.append(f'<p class="verdict">{before}{esc(found.sentence)}</p>')
        if found.limit:
            parts.append(f"<p>To try next: {esc(found.limit.advice)}</p>")
        if history.resumed:
            steps = ", ".join(f"{step:,}" for step in history.resumed)
            parts.append(
                f"<p>{esc(name)} was interrupted and went on from step {steps}; the dashed lines mark where.</p>"
            )
    if shown.runs:
        rules = "".join(f"<li>{esc(rule)}</li>" for rule, _ in RULES)
        parts.append(
            folded(
                "How this is judged",
                f"<p>What limited a run is the first of these that its curves show:</p><ol>{rules}</ol>",
            )
        )
    return parts


def _sweep(name: str, story: SweepStory) -> list[str]:
    """What the trials had and took, and what to try next."""
    took = (
        f"The sweep took {duration(story.seconds)}, its trials {duration(story.trial_seconds)} together. "
        if story.seconds is not None
        else ""
    )
    best = f"Trial {story.best.number}, in bold, is the result" if story.best else "None has finished yet"
    parts = [
        heading(
            "Trials",
            f"{took}Each line is one run with other values. {best}; the curves of a run below are its own.",
        )
    ]
    if story.config and story.trials:
        metric = story.config.metric
        keys = [key for key, entry in story.config.search_space.items() if entry.searched]
        rows = [
            [
                str(trial.number),
                trial.status,
                *(cell(str(trial.params.get(key, ""))) for key in keys),
                cell(str(value)) if (value := trial.value(metric)) is not None else "",
                str(trial.history[-1].get("step", "")) if trial.history else "",
                duration(trial.ended - trial.started) if trial.ended and trial.started else "",
                cell(trial.reason or ""),
            ]
            for trial in story.trials
        ]
        marked = next((place for place, trial in enumerate(story.trials) if trial is story.best), None)
        parts.append(table(["trial", "status", *keys, metric, "steps", "time", "reason"], rows, marked))
    else:
        parts.append("<p>The record of the sweep cannot be read by this version; its pictures:</p>")
        parts += [
            f"<figure>{still(picture.read_bytes(), picture.stem)}</figure>"
            for picture in (sorted(story.paths.plots.glob("*.png")) if story.paths.plots.is_dir() else ())
        ]
    if advice := next_steps(story):
        parts += ["<h3>What to try next</h3>", f"<ul>{''.join(f'<li>{esc(text)}</li>' for text in advice)}</ul>"]
    return parts


def _predictions(shown: Shown) -> list[str]:
    """Of each run what it said of validation rows, and what `evaluate` found later."""
    parts = []
    for name, run in zip(shown.names, shown.runs, strict=True):
        of = f" of {name}" if len(shown.names) > 1 else ""
        parts += [heading(f"Predictions{of}", "On validation rows, by the weights that were exported.")]
        parts.append(predictions.predictions_html(run))
        if found := predictions.evaluations(run):
            parts += [heading(f"Evaluations{of}", "What `evaluate` found later."), found]
    return parts


def _sections(shown: Shown) -> list[str]:
    """What follows the curves."""
    names, runs, histories = shown.names, shown.runs, shown.histories
    parts = [heading("Time and cost"), tables.costs(names, runs, histories, shown.price)]
    if found := tables.restarts(names, runs):
        says = "From the last word of the old workers to the first step of the new ones: the median of all restarts."
        parts += [heading("Restarts", says), found]
    if found := tables.planned(names, runs, histories):
        parts += [heading("The plan, and what was"), found]
    says = "Rows that could not be used are kept in the run's quarantine.jsonl, each with its place and the reason."
    parts += [heading("Data", says), tables.data(names, runs)]
    parts += [heading("Where it comes from"), tables.origin(names, runs), tables.tracker_link(runs)]
    for name, run, history in zip(names, runs, histories, strict=True):
        job = yaml.safe_dump(public_values(run.job), sort_keys=False, allow_unicode=True)
        versions = "\n".join(f"{key} {value}" for key, value in sorted(run.record.get("versions", {}).items()))
        parts += [
            heading(name),
            folded("The job, every parameter", f"<pre>{esc(job)}</pre>"),
            folded("Versions", f"<pre>{esc(versions)}</pre>"),
        ]
        parts += [f'<p class="warn">{esc(text)}</p>' for text in history.notices[:_NOTICES]]
    return parts
