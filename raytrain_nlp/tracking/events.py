"""The events of a run: one JSON object a line, appended by the first rank, followed by the driver.

    {"kind": "log", "time": ms, "step": n, "metrics": {...}}       figures, by their Hugging Face names
    {"kind": "start" | "resume" | "checkpoint" | "notice" | "phase" | "end", "time": ms, ...}
    {"kind": "silent_error" | "straggler", "time": ms, "step": n, "rank": r, "text": ..., ...}
    {"kind": "datasets" | "model", "time": ms, ...}                of the driver: what is read, what has been exported
    {"kind": "failure", "time": ms, "ranks": [...], "error": ...}  of Ray Train's controller: workers that have failed

A notice with "artifact" names a file of the run that the tracker is to keep, too.

A line is complete when it ends; a killed writer leaves at most one unfinished line, which readers pass over.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.redaction import masked_values
from raytrain_nlp.storage.untrusted import parse_json


class EventLog:
    """Appends events.

    Args:
        path: of the file; None gives a log that drops everything (ranks other than the first).
        new: no other process writes now, so that a line without an end is that of a killed writer, and is ended.
    """

    def __init__(self, path: Path | None, new: bool = True):
        self._path = path
        if path is not None and new and path.exists():
            _end_last_line(path)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event. Numbers that JSON lacks (NaN, infinity) are left out."""
        if self._path is None:
            return
        self.append({"kind": kind, "time": time.time_ns() // 1_000_000, **_plain(fields)})

    def append(self, event: dict[str, Any]) -> None:
        """Append an event as it is."""
        if self._path is None:
            return
        line = json.dumps(masked_values(event), ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete events from a byte offset on, each with the offset behind it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = parse_json(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event, offset


def _end_last_line(path: Path) -> None:
    """Close the line a killed writer left open, so that the next event has a line of its own."""
    with path.open("rb+") as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")


def _plain(value: Any) -> Any:
    """Python values only: NumPy numbers and zero-dimensional tensors become floats, non-finite ones are dropped."""
    if isinstance(value, dict):
        return {str(key): plain for key, item in value.items() if (plain := _plain(item)) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)
