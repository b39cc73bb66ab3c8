"""Set rows of a source aside for validation: two files of JSON lines, the same ones for the same rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.storage.atomic import replacing

SPLITS = ("train", "validation")


def split_paths(folder: Path, name: str) -> list[Path]:
    """Where the rows of training and of validation go."""
    return [folder / f"{name}.{split}.jsonl" for split in SPLITS]


def write_splits(source: str, share: float, paths: list[Path]) -> tuple[int, int, int]:
    """Each row goes to one of two files, by its number; how many went to which, and how many cannot be read.

    Raises `InputError` where one of the files would be empty.
    """
    counts, bad = [0, 0], 0
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(replacing(path, newline="\n")) for path in paths]
        for file in find_files([source], "DATA"):
            for piece in split_file(file):
                for row in read_rows(piece):
                    bad += isinstance(row, BadRow)
                    if isinstance(row, Row):
                        side = int(_place(sum(counts)) < share)
                        outputs[side].write(json.dumps(row.values, ensure_ascii=False, default=str) + "\n")
                        counts[side] += 1
        if not all(counts):
            raise InputError(
                Problem("--split", f"leaves no row on one side ({share:g} of {sum(counts)})", "Set another.")
            )
    return counts[0], counts[1], bad


def _place(number: int) -> float:
    """Of a row, evenly between 0 and 1."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") / 2**64
