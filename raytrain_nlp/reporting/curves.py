"""The curves of a report: each a picture with a title, and a sentence for readers who do not know the word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytrain_nlp.reporting.figures import draw
from raytrain_nlp.reporting.history import History

_SMOOTHED = 20
"""A smoothed point is a mean of about this part of all points before it."""
_SMALLEST_TOP = 0.01
"""Shares below it are all the same to the eye: next to nothing."""
_COLORS = ("#1f6fb4", "#d1603d", "#3a8f5c", "#8a5fb0", "#b08a1f", "#4d6370", "#c0487f", "#6c8f1f")


@dataclass(frozen=True)
class Curve:
    """One picture."""

    name: str
    title: str
    says: str
    png: bytes


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


def draw_curves(names: list[str], histories: list[History]) -> list[Curve]:
    """The pictures these runs have figures for; evaluation first after the loss."""
    curves = [curve for wanted in _WANTED if (curve := _curve(wanted, names, histories))]
    if evaluation := _evaluation(names, histories):
        curves.insert(1, evaluation)
    return curves


def _curve(wanted: _Wanted, names: list[str], histories: list[History]) -> Curve | None:
    shown = [figure for figure in wanted.figures if any(figure in history.figures for history in histories)]
    if not shown:
        return None

    def paint(figure: Any) -> None:
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _paint_line(axes, name, names, histories, wanted.smooth)
            axes.set_ylabel(wanted.ylabel if len(shown) == 1 else name.replace("_", " "))
            if wanted.percent:
                axes.yaxis.set_major_formatter(lambda value, place: f"{100 * value:.3g}%")
                axes.set_ylim(0, max(axes.get_ylim()[1], _SMALLEST_TOP))

    return Curve(wanted.name, wanted.title, wanted.says, draw(paint, width=max(9, 2.6 * len(shown)), height=3.6))


def _evaluation(names: list[str], histories: list[History]) -> Curve | None:
    """One small picture for each figure of the evaluations."""
    figures = list(dict.fromkeys(name for history in histories for name in history.evaluated))[:6]
    if not figures:
        return None
    rows = -(-len(figures) // 2)

    def paint(figure: Any) -> None:
        axes = figure.subplots(rows, min(len(figures), 2), squeeze=False).ravel()
        for place, name in zip(axes, figures, strict=False):
            _paint_line(place, name, names, histories, smooth=False)
            place.set_title(name, fontsize="medium")
        for place in axes[len(figures) :]:
            place.set_axis_off()

    return Curve(
        "evaluation",
        "Evaluation",
        "How well the model does on rows it never learns from.",
        draw(paint, width=9, height=3.2 * rows),
    )


def _paint_line(axes: Any, name: str, names: list[str], histories: list[History], smooth: bool) -> None:
    for number, (label, history) in enumerate(zip(names, histories, strict=True)):
        steps, values = history.line(name)
        color = _COLORS[number % len(_COLORS)]
        if steps:
            faint = smooth and len(steps) > 20
            axes.plot(
                steps,
                values,
                color=color,
                alpha=0.25 if faint else 1,
                marker="o" if len(steps) <= 20 else None,
                markersize=4,
                label=None if faint else label,
            )
            if faint:
                axes.plot(steps, _smoothed(values), color=color, label=label)
        for step in history.resumed:
            axes.axvline(step, color=color, linestyle="--", linewidth=1)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(fontsize="small")


def _smoothed(values: list[float]) -> list[float]:
    """An exponential mean that starts without a bias to 0 (Kingma and Ba 2015, section 3)."""
    mean, weight, smoothed = 0.0, 0.0, []
    new = 1 / max(len(values) / _SMOOTHED, 1)
    for value in values:
        mean, weight = (1 - new) * mean + new * value, (1 - new) * weight + new
        smoothed.append(mean / weight)
    return smoothed
