"""What a report draws: panels of charts, as plain values. `curves` draws them as PNG, `interactive` as what moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

COLORS = ("#2f7fc4", "#d1603d", "#3a8f5c", "#8a5fb0", "#b08a1f", "#4d6370", "#c0487f", "#6c8f1f")
"""Of the runs, in order; the first is also what stands out."""
BEST = "#d1603d"
"""Of the best trial, wherever a sweep is drawn."""


def color_of(number: int) -> str:
    return COLORS[number % len(COLORS)]


@dataclass(frozen=True)
class Line:
    """One line of a chart; with `dots` each point is marked, too, and with `width` 0 these stand alone."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    width: float = 1.5
    alpha: float = 1.0
    dots: bool = False
    dashed: bool = False
    named: bool = True
    """Does it stand in the legend?"""


@dataclass(frozen=True)
class Mark:
    """A place on the axis below: a restart, or a checkpoint."""

    x: float
    color: str
    says: str


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    xlabel: str
    ylabel: str
    lines: list[Line]
    restarts: list[Mark] = field(default_factory=list)
    """Dashed lines across the chart."""
    checkpoints: list[Mark] = field(default_factory=list)
    """Small triangles on the axis."""
    percent: bool = False
    xlog: bool = False
    ticks: dict[float, str] = field(default_factory=dict)
    """Names of places on the axis below; empty where they are numbers."""


@dataclass(frozen=True)
class Bars:
    """Shares of names, the largest first."""

    title: str
    xlabel: str
    names: list[str]
    values: list[float]


@dataclass(frozen=True)
class Axis:
    """One of the axes of parallel coordinates."""

    name: str
    places: list[float]
    """Of each line, from 0 to 1."""
    ends: tuple[str, str]
    """What stands at 0 and at 1."""


@dataclass(frozen=True)
class Parallel:
    """A line for each trial, through an axis for each key and one for the figure."""

    title: str
    axes: list[Axis]
    names: list[str]
    """Of the lines: what a reader sees when pointing at one."""
    best: int | None
    """The line of the best trial."""


@dataclass(frozen=True)
class Panel:
    """Charts under one heading."""

    name: str
    """Of its PNG file."""
    title: str
    says: str
    """The caption: for readers who do not know the word."""
    charts: list[Chart | Bars | Parallel]


def thinned(x: Sequence[float], y: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """A line with at most about `most` points: of each stretch its lowest and its highest, so that no peak is lost."""
    if len(x) <= most:
        return list(x), list(y)
    stretch = -(-2 * len(x) // most)
    kept = {0, len(x) - 1}
    for start in range(0, len(x), stretch):
        places = range(start, min(start + stretch, len(x)))
        kept |= {min(places, key=y.__getitem__), max(places, key=y.__getitem__)}
    order = sorted(kept)
    return [x[place] for place in order], [y[place] for place in order]
