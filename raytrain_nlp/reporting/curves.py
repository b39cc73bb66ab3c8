"""The panels of runs: which figures are drawn, with a title, and a sentence for readers who do not know the word."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain_nlp.reporting.charts import Chart, Line, Mark, Panel, color_of, thinned
from raytrain_nlp.reporting.history import History, smoothed

_FEW = 20
"""So many points are each a dot."""
_POINTS = 600
"""Of the lines of one chart together: each is drawn many times over, and a page is to stay small."""
_MOST_FIGURES = 6
"""Of the evaluations."""


@dataclass(frozen=True)
class _Wanted:
    name: str
    title: str
    says: str
    figures: tuple[str, ...]
    ylabel: str
    percent: bool = False
    smooth: bool = False


_WANTED = (
    _Wanted(
        "loss",
        "Training loss",
        "How wrong the model is on the rows it learns from; lower is better. Faint: as logged; strong: smoothed.",
        ("loss",),
        "loss",
        smooth=True,
    ),
    _Wanted(
        "throughput",
        "Throughput",
        "Tokens of text (without padding) that all workers together work through in a second.",
        ("tokens_per_second",),
        "tokens/s",
    ),
    _Wanted(
        "time-of-a-step",
        "Time of a step",
        "Seconds that the first worker spends in the passes of the model, in the update of the weights, and waiting "
        "for data and for other workers.",
        ("time/step", "time/forward", "time/backward", "time/update", "time/data_wait", "time/communication_wait"),
        "seconds",
    ),
    _Wanted(
        "mfu",
        "Use of the GPU",
        "Of the arithmetic that the GPU could do at its best, the share that training the model needs (MFU).",
        ("mfu",),
        "MFU",
        percent=True,
    ),
    _Wanted(
        "shares",
        "Waiting and padding",
        "Of the time, the share in which a worker waited for data; of the tokens in its batches, the share that is "
        "filling. Both cost time.",
        ("data_wait_share", "padding_share"),
        "share",
        percent=True,
    ),
    _Wanted(
        "learning-rate", "Learning rate", "How far one update may move the model.", ("learning_rate",), "learning rate"
    ),
    _Wanted(
        "gradient",
        "Gradient norm",
        "How strongly the rows pull at the model; spikes mark hard or broken rows.",
        ("grad_norm",),
        "norm",
    ),
    _Wanted(
        "memory", "Memory", "Main memory of the first worker's process.", ("system/process_memory_megabytes",), "MB"
    ),
)


def run_panels(names: list[str], histories: list[History]) -> list[Panel]:
    """The panels these runs have figures for: the loss, the evaluations, the clock, then the rest."""
    found = [_panel(wanted, names, histories) for wanted in _WANTED]
    panels = [panel for panel in found if panel]
    return (
        panels[:1]
        + [panel for panel in (_evaluation(names, histories), _clock(names, histories)) if panel]
        + panels[1:]
    )


def _panel(wanted: _Wanted, names: list[str], histories: list[History]) -> Panel | None:
    shown = [figure for figure in wanted.figures if any(figure in history.figures for history in histories)]
    if not shown:
        return None
    charts = [
        over_steps(
            figure,
            wanted.ylabel if len(shown) == 1 else figure.removeprefix("time/").replace("_", " "),
            names,
            histories,
            wanted.smooth,
            wanted.percent,
            "" if len(shown) == 1 else figure.removeprefix("time/").replace("_", " "),
        )
        for figure in shown
    ]
    return Panel(wanted.name, wanted.title, wanted.says, list(charts))


def _evaluation(names: list[str], histories: list[History]) -> Panel | None:
    figures = list(dict.fromkeys(name for history in histories for name in history.evaluated))[:_MOST_FIGURES]
    if not figures:
        return None
    charts = [
        over_steps(name, name, names, histories, title=name.removeprefix("eval_").replace("_", " ")) for name in figures
    ]
    says = "How well the model does on rows it never learns from."
    return Panel("evaluation", "Evaluation", says, list(charts))


def over_steps(
    figure: str,
    ylabel: str,
    names: list[str],
    histories: list[History],
    smooth: bool = False,
    percent: bool = False,
    title: str = "",
) -> Chart:
    """A figure over the steps of each run, with its restarts and checkpoints."""
    lines, restarts, checkpoints = [], [], []
    most = _POINTS // len(names)
    for number, (label, history) in enumerate(zip(names, histories, strict=True)):
        steps, values = history.line(figure)
        color, faint = color_of(number), smooth and len(steps) > _FEW
        if steps:
            x, y = thinned(steps, values, most)
            lines.append(Line(label, x, y, color, alpha=0.4 if faint else 1, named=not faint, dots=len(steps) <= _FEW))
        if faint:
            lines.append(Line(label, *thinned(steps, smoothed(values), most), color, width=2))
        restarts += [
            Mark(step, color, f"{label} went on from step {step:,}") for step in dict.fromkeys(history.resumed)
        ]
        saved = dict.fromkeys(moment.step for moment in history.saved)
        checkpoints += [Mark(step, color, f"{label}: checkpoint of step {step:,}") for step in saved]
    return Chart(title, "step", ylabel, lines, restarts, checkpoints, percent)


def _clock(names: list[str], histories: list[History]) -> Panel | None:
    """Steps over minutes, where a run was interrupted or saved."""
    if not any(history.restarts or history.saved for history in histories):
        return None
    lines, restarts, checkpoints = [], [], []
    for number, (label, history) in enumerate(zip(names, histories, strict=True)):
        color = color_of(number)
        x, y = ([moment.seconds / 60 for moment in history.clock], [moment.step for moment in history.clock])
        lines.append(Line(label, *thinned(x, y, _POINTS // len(names)), color))
        restarts += [
            Mark(moment.seconds / 60, color, f"{label} went on from step {moment.step:,}")
            for moment in history.restarts
        ]
        checkpoints += [
            Mark(moment.seconds / 60, color, f"{label}: checkpoint of step {moment.step:,}") for moment in history.saved
        ]
    says = (
        "When each step was done. Dashed: workers were there again after an interruption, and went on from the last "
        "checkpoint; triangles: a checkpoint was committed."
    )
    return Panel("clock", "Steps over time", says, [Chart("", "minutes", "step", lines, restarts, checkpoints)])
