"""Panels as what one can zoom, point at and brush: Bokeh's own output, its script inside the page, so that it asks no
network for anything. Without Bokeh a page has its pictures.
"""

from __future__ import annotations

import importlib.util
import re
from functools import singledispatch
from typing import Any

from raytrain_nlp.reporting.charts import BEST, COLORS, Bars, Chart, Line, Panel, Parallel

_INK = "#7d8896"
"""Of axes and texts: can be read on white and on black."""
_HEIGHT = 270
_MOST_NAMED = 12

_LEVEL = "Bokeh.set_log_level"
"""Setting a level by it is itself a line on the browser's console."""

_BRUSH = """
const {x0, x1, y0, y1} = cb_obj.geometry
if (!cb_obj.final) return
const brushes = boxes.data
const at = Math.round((x0 + x1) / 2)
const left = brushes.x.map((x, i) => [x, brushes.low[i], brushes.high[i]]).filter(b => b[0] != at)
if (y1 - y0 > 0.01) left.push([at, y0, y1])
boxes.data = {x: left.map(b => b[0]), low: left.map(b => b[1]), high: left.map(b => b[2])}
const alpha = source.data.ys.map((places, i) =>
  left.every(b => places[b[0]] >= b[1] && places[b[0]] <= b[2]) ? source.data.full[i] : 0.05)
source.data = {...source.data, alpha}
source.selected.indices = []
"""
"""A box that is drawn along an axis keeps the lines that pass there; boxes of several axes hold together."""
_ALL = """
boxes.data = {x: [], low: [], high: []}
source.data = {...source.data, alpha: source.data.full}
"""


def plain(text: str) -> str:
    """Text that Bokeh does not take for TeX, for which it would fetch MathJax from a network: a word joiner, which
    nobody sees, stands behind each `$` and each backslash.
    """
    return re.sub(r"([$\\])", "\\1\u2060", text)


def available() -> bool:
    """Is Bokeh installed?"""
    return importlib.util.find_spec("bokeh") is not None


def library() -> str:
    """BokehJS, as a script of the page."""
    from bokeh.resources import Resources

    parts = Resources(mode="inline", components=["bokeh"]).js_raw
    return "\n".join([*(part for part in parts if not part.startswith(_LEVEL)), 'Bokeh.logger.set_level("error")'])


def charts_html(panels: list[Panel]) -> tuple[dict[str, list[str]], str]:
    """For each panel the elements of its charts, by its name; and the script that fills all of them.

    Charts over steps share their axis: what is zoomed in one is zoomed in all.
    """
    from bokeh.embed import components
    from bokeh.models import Range1d

    drawn = [chart for panel in panels for chart in panel.charts if isinstance(chart, Chart) and _has_steps(chart)]
    ends = [x for chart in drawn for line in chart.lines for x in line.x]
    low, high = (min(ends), max(ends)) if ends else (0, 1)
    margin = max(high - low, 1) * 0.02
    steps = Range1d(low - margin, high + margin, bounds=(low - margin, high + margin))
    figures = {
        f"{panel.name}-{number}": build_figure(chart, steps if _has_steps(chart) else None)
        for panel in panels
        for number, chart in enumerate(panel.charts)
    }
    script, elements = components(figures)
    return {
        panel.name: [elements[f"{panel.name}-{number}"] for number in range(len(panel.charts))] for panel in panels
    }, script


def _has_steps(chart: Any) -> bool:
    return isinstance(chart, Chart) and chart.xlabel == "step"


@singledispatch
def build_figure(chart: Any, steps: Any) -> Any:
    """A chart of any kind as a figure of Bokeh's. `steps`: the axis that charts over steps share."""
    raise TypeError(type(chart).__name__)


@build_figure.register
def _(chart: Chart, steps: Any) -> Any:
    from bokeh.models import FixedTicker, NumeralTickFormatter, Span

    shared = {"x_range": steps} if steps is not None else {}
    figure = _figure(plain(chart.title), x_axis_type="log" if chart.xlog else "linear", **shared)
    named = sum(line.named for line in chart.lines)
    for line in chart.lines:
        _add_line(figure, line, chart, 1 < named <= _MOST_NAMED and line.named)
    for mark in chart.restarts:
        figure.add_layout(
            Span(location=mark.x, dimension="height", line_color=mark.color, line_dash="dashed", line_width=1)
        )
    lowest = min((y for line in chart.lines for y in line.y), default=0.0)
    for marks, name, shape, size in (
        (chart.checkpoints, "checkpoints", "triangle", 7),
        (chart.restarts, "restarts", "square", 6),
    ):
        if marks:
            places = {
                "x": [mark.x for mark in marks],
                "y": [lowest] * len(marks),
                "says": [mark.says for mark in marks],
            }
            drawn = figure.scatter(
                "x",
                "y",
                source=_source(places),
                marker=shape,
                size=size,
                color=[mark.color for mark in marks][0],
                name=name,
            )
            _hover(figure, drawn, [("", "@says")])
    figure.xaxis.axis_label, figure.yaxis.axis_label = plain(chart.xlabel), plain(chart.ylabel)
    if chart.ticks:
        figure.xaxis.ticker = FixedTicker(ticks=list(chart.ticks))
        figure.xaxis.major_label_overrides = {place: plain(text) for place, text in chart.ticks.items()}
    heights = {y for line in chart.lines for y in line.y}
    if len(heights) == 1:  # Bokeh would show a flat line in a range of 2 around it
        figure.y_range.default_span = max(abs(heights.pop()) / 5, 1e-6)
    if chart.percent:
        figure.yaxis.formatter = NumeralTickFormatter(format="0.[00]%")
        figure.y_range.start = 0
    if len(figure.legend):
        legend = figure.legend[0]
        legend.update(click_policy="hide", background_fill_alpha=0, border_line_alpha=0, label_text_color=_INK)
        legend.update(label_text_font_size="11px", spacing=0, padding=4)
    return figure


def _add_line(figure: Any, line: Line, chart: Chart, named: bool) -> None:
    source = _source({"x": [_short(x) for x in line.x], "y": [_short(y) for y in line.y]})
    style = {"color": line.color, "alpha": line.alpha, **({"legend_label": plain(line.label)} if named else {})}
    drawn = []
    if line.width:
        dash = "dashed" if line.dashed else "solid"
        drawn.append(figure.line("x", "y", source=source, line_width=line.width, line_dash=dash, **style))
    if line.dots:
        drawn.append(figure.scatter("x", "y", source=source, size=6, **style))
    if line.named or not line.dots:
        value = "@y{0.00%}" if chart.percent else "@y{0.[00000]}"
        _hover(figure, drawn[-1], [(plain(chart.xlabel), "@x{0.[0000000]}"), (plain(line.label), value)])


@build_figure.register
def _(chart: Bars, steps: Any) -> Any:
    from bokeh.models import FactorRange, Range1d

    names = list(map(plain, chart.names))
    figure = _figure(plain(chart.title), y_range=FactorRange(factors=names[::-1]), x_range=Range1d(0, 1))
    drawn = figure.hbar(
        y="name",
        right="value",
        height=0.6,
        color=COLORS[0],
        source=_source({"name": names, "value": chart.values}),
    )
    _hover(figure, drawn, [("@name", "@value{0.0%}")])
    figure.xaxis.axis_label = plain(chart.xlabel)
    return figure


@build_figure.register
def _(chart: Parallel, steps: Any) -> Any:
    """Lines over the numbers of the axes; dragging along an axis brushes it."""
    from bokeh.events import DoubleTap, SelectionGeometry
    from bokeh.models import BoxSelectTool, CustomJS, FixedTicker, Label, Range1d, Span

    count = len(chart.axes)
    figure = _figure(
        plain(chart.title), x_range=Range1d(-0.5, count - 0.5), y_range=Range1d(-0.12, 1.12), height=360, tools=""
    )
    order = sorted(range(len(chart.names)), key=lambda line: line == chart.best)  # the best one above all
    full = [1.0 if line == chart.best else 0.55 for line in order]
    source = _source(
        {
            "xs": [list(range(count)) for _ in order],
            "ys": [[axis.places[line] for axis in chart.axes] for line in order],
            "color": [BEST if line == chart.best else COLORS[0] for line in order],
            "width": [3.0 if line == chart.best else 1.5 for line in order],
            "name": [chart.names[line] for line in order],
            "alpha": full,
            "full": full,
        }
    )
    drawn = figure.multi_line("xs", "ys", source=source, line_color="color", line_width="width", line_alpha="alpha")
    drawn.nonselection_glyph = drawn.selection_glyph = None
    boxes = _source({"x": [], "low": [], "high": []})
    figure.vbar(x="x", bottom="low", top="high", width=0.12, color=COLORS[0], alpha=0.35, source=boxes)
    for place, axis in enumerate(chart.axes):
        figure.add_layout(Span(location=place, dimension="height", line_color=_INK, line_width=1))
        for y, text in zip((-0.1, 1.03), axis.ends, strict=True):
            figure.add_layout(
                Label(x=place, y=y, text=plain(text), text_align="center", text_font_size="11px", text_color=_INK)
            )
    figure.xaxis.ticker = FixedTicker(ticks=list(range(count)))
    figure.xaxis.major_label_overrides = {place: plain(axis.name) for place, axis in enumerate(chart.axes)}
    figure.yaxis.visible = figure.ygrid.visible = figure.xgrid.visible = False
    brush = BoxSelectTool(renderers=[drawn], dimensions="both")
    figure.add_tools(brush)
    figure.toolbar.active_drag = brush
    given = {"source": source, "boxes": boxes}
    figure.js_on_event(SelectionGeometry, CustomJS(args=given, code=_BRUSH))
    figure.js_on_event(DoubleTap, CustomJS(args=given, code=_ALL))
    _hover(figure, drawn, [("", "@name")])
    return figure


def _figure(title: str, height: int = _HEIGHT, tools: str = "xpan,xbox_zoom,reset", **given: Any) -> Any:
    """Without a background of its own: the page's shows, be it light or dark."""
    from bokeh.plotting import figure

    made = figure(
        title=title or None, height=height, sizing_mode="stretch_width", tools=tools, toolbar_location=None, **given
    )
    if tools:
        made.toolbar.active_drag = next(tool for tool in made.tools if type(tool).__name__ == "BoxZoomTool")
        made.js_on_event("doubletap", _reset(made))
    made.update(background_fill_alpha=0, border_fill_alpha=0, outline_line_alpha=0)
    for axis in made.axis:
        axis.update(axis_label_text_color=_INK, major_label_text_color=_INK, axis_line_color=_INK)
        axis.update(major_tick_line_color=_INK, minor_tick_line_color=None, axis_label_text_font_style="normal")
    for grid in made.grid:
        grid.update(grid_line_color=_INK, grid_line_alpha=0.2)
    if made.title is not None:
        made.title.text_color = _INK
    return made


def _reset(figure: Any) -> Any:
    from bokeh.models import CustomJS

    return CustomJS(args={"figure": figure}, code="figure.reset.emit()")


def _short(value: float) -> float:
    """Without digits that no chart shows, which make up half of a page's numbers."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _source(values: dict[str, Any]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(values)


def _hover(figure: Any, renderer: Any, tooltips: list[tuple[str, str]]) -> None:
    from bokeh.models import HoverTool

    figure.add_tools(HoverTool(renderers=[renderer], tooltips=tooltips))
