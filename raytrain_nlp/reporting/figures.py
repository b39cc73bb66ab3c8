"""Pictures without a display: figures of matplotlib to PNG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


def draw(paint: Callable[[Any], None], width: float = 8, height: float = 5) -> bytes:
    """The PNG of a figure of so many inches that `paint` has drawn on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and nothing kept by pyplot
    paint(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
