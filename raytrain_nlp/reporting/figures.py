"""Pictures without a display: figures and panels to PNG, in one style."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np

from raytrain_nlp.reporting.charts import BEST, COLORS, Bars, Chart, Panel, Parallel

_SMALLEST_TOP = 0.01
"""Shares below it are all the same to the eye: next to nothing."""
_COLUMNS = 3
_DPI = 100
_SHADES = 24
"""Colors of a picture: a palette makes it a quarter of its size, of which a page has many."""
_MOST_NAMED = 12
"""Lines that a legend has room for."""


def draw(paint: Callable[[Any], None], width: float = 8, height: float = 5) -> bytes:
    """The PNG of a figure of so many inches that `paint` has drawn on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no display, and nothing kept by pyplot
    paint(figure)
    canvas.draw()
    content = io.BytesIO()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(_SHADES, Image.Quantize.MAXCOVERAGE).save(content, format="png", optimize=True)
    return content.getvalue()


def draw_panel(panel: Panel, caption: bool = False) -> bytes:
    """The PNG of a panel; with its caption, where it is to stand alone."""
    count = len(panel.charts)
    columns = min(count, _COLUMNS if count != 4 else 2)
    rows = -(-count // columns)

    def paint(figure: Any) -> None:
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, chart in zip(places, panel.charts, strict=False):
            paint_chart(chart, axes)
        for axes in places[count:]:
            axes.set_axis_off()
        if caption:
            figure.suptitle(panel.title, fontsize="large")
            figure.supxlabel(panel.says, fontsize="small", color="#4a5565", wrap=True)

    return draw(paint, width=9 if columns < _COLUMNS else 11, height=3.4 * rows + 0.4 * caption)


@singledispatch
def paint_chart(chart: Any, axes: Any) -> None:
    """Draw a chart of any kind on matplotlib's axes."""
    raise TypeError(type(chart).__name__)


@paint_chart.register
def _(chart: Chart, axes: Any) -> None:
    for line in chart.lines:
        style = {"color": line.color, "alpha": line.alpha, "linewidth": line.width}
        axes.plot(
            line.x,
            line.y,
            "--" if line.dashed else "-",
            marker="o" if line.dots else None,
            markersize=4,
            label=line.label if line.named else None,
            **style,
        )
    for mark in chart.restarts:
        axes.axvline(mark.x, color=mark.color, linestyle="--", linewidth=1)
    if chart.checkpoints:
        places, colors = [mark.x for mark in chart.checkpoints], [mark.color for mark in chart.checkpoints]
        axes.scatter(places, [0.02] * len(places), c=colors, marker="^", s=14, transform=axes.get_xaxis_transform())
    axes.set(xlabel=chart.xlabel, ylabel=chart.ylabel)
    axes.set_title(chart.title, fontsize="medium")
    if chart.xlog:
        axes.set_xscale("log")
    if chart.ticks:
        axes.set_xticks(list(chart.ticks), list(chart.ticks.values()))
    if chart.percent:
        axes.yaxis.set_major_formatter(lambda value, place: f"{100 * value:.3g}%")
        axes.set_ylim(0, max(axes.get_ylim()[1], _SMALLEST_TOP))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    named = sum(line.named for line in chart.lines)
    if 1 < named <= _MOST_NAMED:
        axes.legend(fontsize="small")


@paint_chart.register
def _(chart: Bars, axes: Any) -> None:
    axes.barh(chart.names[::-1], chart.values[::-1], color=COLORS[0])
    axes.set(xlabel=chart.xlabel, xlim=(0, 1), title=chart.title)
    axes.spines[["top", "right"]].set_visible(False)


@paint_chart.register
def _(chart: Parallel, axes: Any) -> None:
    order = sorted(range(len(chart.names)), key=lambda line: line == chart.best)  # the best one above all
    for line in order:
        best = line == chart.best
        places = [axis.places[line] for axis in chart.axes]
        axes.plot(places, color=BEST if best else COLORS[0], alpha=1 if best else 0.45, linewidth=2.5 if best else 1.2)
    for place, axis in enumerate(chart.axes):
        axes.axvline(place, color="#8a93a0", linewidth=1)
        axes.text(place, -0.05, axis.ends[0], ha="center", va="top", fontsize="small")
        axes.text(place, 1.03, axis.ends[1], ha="center", fontsize="small")
    axes.set_xticks(range(len(chart.axes)), [axis.name for axis in chart.axes], rotation=15)
    axes.tick_params(axis="x", pad=18, length=0)
    axes.set_ylim(-0.02, 1.02)  # also where all trials are alike: the texts above and below are placed by it
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
