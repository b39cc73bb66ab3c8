"""Sets rows of a source aside for validation: writes two JSON Lines files, which are the same for the same rows."""

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
    """The files for training and validation rows."""
    return [folder / f"{name}.{split}.jsonl" for split in SPLITS]


def write_splits(source: str, share: float, paths: list[Path]) -> tuple[int, int, int]:
    """Write each row of a source to one of two files, chosen by a hash of the row's number.

    Args:
        share: share of the rows for validation (0 to 1).
        paths: the files for training and validation rows.

    Returns:
        The number of rows for training, of rows for validation, and of rows that cannot be read.

    Raises:
        InputError: one of the files would be empty.
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
    """A hash of a row's number, evenly distributed between 0 and 1."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") / 2**64
