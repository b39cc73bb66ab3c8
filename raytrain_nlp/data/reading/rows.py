"""What a reader gives, one after the other: a row, a bad row, or a line without a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One parsed row and its place in the piece: lines and row numbers start at 0."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that goes to quarantine."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Blank:
    """A line without a row; it matters for the numbers of the lines behind it only."""

    line: int


def bad_row(line: int, reason: str, text: bytes) -> BadRow:
    return BadRow(line, reason, text[:500].decode("utf-8", "backslashreplace"))
