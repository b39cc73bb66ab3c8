"""What a verb of the Python API returns: plain values, shown as a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

_MOST_ITEMS = 8
"""Items of a list up to which a notebook shows them."""


class Result:
    """A dataclass of plain values, as `--json` prints it."""

    def to_dict(self) -> dict[str, Any]:
        """All values, by the names of the fields."""
        return asdict(self)  # type: ignore[call-overload]  # each subclass is a dataclass

    def rows_for_people(self) -> dict[str, str]:
        """Name -> text of each line of the table that a notebook shows; what is None or empty has no line."""
        return dict(_lines("", self.to_dict()))

    def _repr_html_(self) -> str:
        """The table that Jupyter shows. All text is escaped: it may come from data."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows_for_people().items()
        )
        return f"<table>{rows}</table>"


def _lines(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(f"{prefix}{key}.", value)
        elif isinstance(value, (list, tuple)) and len(value) > _MOST_ITEMS:
            yield f"{prefix}{key}", f"{len(value):,} items"
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.6g}"
        elif value is not None and value != [] and value != ():
            yield f"{prefix}{key}", str(value)
