"""The results of a reader: rows, bad rows, and lines without a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One parsed row, with the number of its line or row in the piece, from 0."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that goes to quarantine, with the reason and the beginning of its text."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Blank:
    """A line without a row. It counts for the line numbers of the rows after it."""

    line: int


def bad_row(line: int, reason: str, text: bytes) -> BadRow:
    """A bad row with the first 500 bytes of its text; bytes that are not UTF-8 are escaped."""
    return BadRow(line, reason, text[:500].decode("utf-8", "backslashreplace"))
