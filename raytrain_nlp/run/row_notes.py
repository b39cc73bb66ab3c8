"""Which rows the ranks of a run have really trained, noted by each rank as it begins a micro-batch: evidence beside the
plan. Off, unless the environment of the driver has RAYTRAIN_NLP_NOTE_ROWS=1.

RUN/rows/RANK-PID.jsonl    a line for each micro-batch of a process
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.storage.untrusted import parse_json

if TYPE_CHECKING:
    from raytrain_nlp.data.split import MicroBatch

NOTE_ROWS = "RAYTRAIN_NLP_NOTE_ROWS"


@dataclass(frozen=True)
class RowNote:
    """One micro-batch that a rank has begun to train."""

    host: str
    pid: int
    born: float
    """When the process was started, in seconds since 1970; with host and pid it means one process only."""
    rank: int
    step: int
    """The update it belongs to, from 1."""
    micro: int
    """Its number among the rank's micro-batches of this update."""
    rows: list[int]
    """Row ids."""
    content: list[int] | None
    """A checksum of each row's tokens and labels as the model gets them, without padding; None where the model gets no
    attention mask that tells padding.
    """


@dataclass(frozen=True)
class Batch:
    """The global batch of an update, put together from the notes of all ranks."""

    rows: list[int]
    """Row ids in the order of the plan."""
    content: dict[int, int]
    """Row id -> checksum; empty where there are none."""


def rows_are_noted() -> bool:
    """Does the environment of this driver ask for notes?"""
    return os.environ.get(NOTE_ROWS) == "1"


class RowNotes:
    """Writes the notes of this process. Each is in the file before its micro-batch is trained."""

    def __init__(self, folder: Path, rank: int):
        import psutil

        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._rank = folder / f"{rank}-{os.getpid()}.jsonl", rank
        self._host, self._born = socket.gethostname(), psutil.Process().create_time()

    def __call__(self, batch: MicroBatch) -> None:
        rows = batch.rows.tolist()
        content = _checksums(batch.tensors, len(rows))
        note = RowNote(self._host, os.getpid(), self._born, self._rank, batch.step + 1, batch.micro, rows, content)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(note)) + "\n")


def read_notes(folder: Path) -> list[RowNote]:
    """All notes of a run; a line that a killed process has left unfinished is passed over."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines(keepends=True)]
    return [RowNote(**parse_json(line)) for line in lines if line.endswith(b"\n")]


def batches_of(notes: Sequence[RowNote], groups: Sequence[Sequence[int]]) -> dict[int, Batch]:
    """Update -> the global batch that counts: of an update that was made again, that of the group which made it last.

    Args:
        groups: process ids by rank of each group of workers that the run has had, oldest first (its events `start` and
            `resume`).
    """
    newest: dict[int, int] = {}
    parts: dict[tuple[int, int], dict[tuple[int, int], RowNote]] = {}
    for note in notes:
        group = max((i for i, pids in enumerate(groups) if note.pid in pids), default=-1)
        newest[note.step] = max(newest.get(note.step, -1), group)
        parts.setdefault((note.step, group), {})[note.micro, note.rank] = note
    found = {}
    for step in sorted(newest):
        ordered = [part for _, part in sorted(parts[step, newest[step]].items())]
        content = {row: sum_ for part in ordered for row, sum_ in zip(part.rows, part.content or [], strict=False)}
        found[step] = Batch([row for part in ordered for row in part.rows], content)
    return found


def _checksums(tensors: dict[str, Any], count: int) -> list[int] | None:
    ids, mask, labels = (tensors.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if ids is None or mask is None or mask.shape != ids.shape:
        return None
    return [
        zlib.crc32(
            ids[i][mask[i] != 0].numpy().tobytes()
            + (labels[i][labels[i] != -100].numpy().tobytes() if labels is not None else b"")
        )
        for i in range(count)
    ]
