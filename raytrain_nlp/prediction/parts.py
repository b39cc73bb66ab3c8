"""The part files of a prediction: which exist, whether they belong to the same prediction, and joining them into the
output.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.run.saved_run import Run, Weights
from raytrain_nlp.storage.untrusted import parse_json

if TYPE_CHECKING:
    from raytrain_nlp.data.reading.sources import SourceFile

_SAMPLES, _SAMPLE = 16, 1 << 16
"""Number and bytes of the samples that are hashed of a large file of weights. They suffice, as weights of two trainings
differ everywhere.
"""
_PIECES, _LEAST_PIECE, _MOST_PIECE = 256, 1 << 20, 16 << 20
"""Number of pieces that an input should have, each read by one task, and the least and most bytes of a piece."""


@dataclass(frozen=True)
class Layout:
    """How the rows of the input are divided into parts: files into pieces, pieces into chunks, each of which is a
    part.
    """

    piece_bytes: int
    """Bytes of a piece, about."""
    chunk_rows: int
    """Rows of a chunk."""

    @classmethod
    def of(cls, files: list[SourceFile], chunk_rows: int) -> Layout:
        """The layout of an input. It depends on the size of the input only, so it is the same when a killed prediction
        is run again.
        """
        size = sum(file.size for file in files)
        return cls(min(max(size // _PIECES, _LEAST_PIECE), _MOST_PIECE), chunk_rows)


def describe_prediction(
    run: Run,
    weights: Weights,
    job: TrainJob,
    files: list[SourceFile],
    options: dict[str, Any],
    prefix: str,
    layout: Layout,
    dtype: str | None,
) -> dict[str, Any]:
    """Everything on which the content of the parts depends, as JSON values. Parts are used only by a prediction with an
    equal description, so those of another model, input or code are never mixed in. Times of files are not in it,
    because a copy of the input may have others.
    """
    from raytrain_nlp.data.reading.sources import fingerprint_files
    from raytrain_nlp.user_code import UserObject

    values = public_values(job)
    preprocess = (
        job.trainer.preprocess
        and UserObject(job.trainer.preprocess, "trainer.preprocess", run.code_folder).fingerprint()
    )
    return {
        "run": run.paths.store.address_of(run.paths.run.resolve()),
        "weights": weights.name,
        "content": _digest(weights),
        "input": fingerprint_files(files),
        "generation": options,
        "prefix": prefix,
        **asdict(layout),
        "dtype": dtype or job.model.dtype,
        "task": values["task"],
        "max_length": job.data.max_length,
        "preprocess": preprocess,
    }


def _digest(weights: Weights) -> str:
    """A hash of the files of the weights: their names, sizes and samples of their content."""
    digest = hashlib.sha256()
    for file in sorted(path for path in weights.folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(weights.folder)} {size} ".encode("utf-8", "surrogateescape"))
        with file.open("rb") as content:
            for place in range(0, size, max(size // _SAMPLES, _SAMPLE)):
                content.seek(place)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()


def find_parts(target: str, parts: str, what: dict[str, Any], overwrite: bool) -> list[str]:
    """The names of the parts that this prediction has made before. Parts of another prediction are deleted if
    `overwrite` is set.

    Args:
        target: the output file.
        parts: the folder of the parts.
        what: what `describe_prediction` has returned.

    Raises:
        InputError: the output or parts of another prediction exist and `overwrite` is not set, or the output cannot be
            written. No part has been lost.
    """
    import fsspec

    from raytrain_nlp.prediction.files import list_parts, open_output, remove_tree

    note = f"{parts}/predict.json"
    try:
        filesystem, inner = fsspec.core.url_to_fs(note)
        there = [path.rsplit("/", 1)[-1] for path in list_parts(parts)]
        same = _read_note(filesystem, inner) == json.loads(json.dumps(what))
        done = there if same else []
        if filesystem.exists(fsspec.core.url_to_fs(target)[1]) and not overwrite:
            kept = f"; the {len(done)} parts that are made already are kept" if done else ""
            raise InputError(
                Problem("--output", f"is there already ({target})", f"Name another file, or add --overwrite{kept}.")
            )
        if not same and there and not overwrite:
            todo = f"Finish that one, name another file, or add --overwrite, which deletes these {len(there)} parts."
            raise InputError(Problem("--output", f"{parts} is of another model, input or device", todo))
        if not same:
            remove_tree(parts)
            with open_output(note) as file:
                file.write(json.dumps(what).encode())
    except InputError:
        raise
    except Exception as error:  # fsspec's backends may raise anything  # noqa: BLE001
        raise InputError(
            Problem(
                "--output",
                f"cannot be written ({target}: {type(error).__name__}: {error})",
                "Check path, address and permissions.",
            )
        ) from None
    return done


def _read_note(filesystem: Any, path: str) -> Any:
    """The description beside the parts (`predict.json`); None if there is none, or if it is damaged."""
    try:
        with filesystem.open(path, "rb") as file:
            return parse_json(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def join_parts(target: str, parts: str, kind: str, done: set[str], prefix: str) -> dict[str, Any]:
    """Write the output from all parts, and beside it a file with the rows that could not be parsed; then delete the
    parts.

    Args:
        kind: format of the output: parquet, jsonl or csv.
        done: names of the parts that an earlier call has made.
        prefix: see `predict`.

    Returns:
        Counts and the quarantine file, by the names of `PredictResult`.
    """
    from raytrain_nlp.prediction.actor import ERROR
    from raytrain_nlp.prediction.files import BAD, list_parts, open_output, read_part, remove_tree, write_parts

    made, bad, errors, found = list_parts(parts), [], 0, 0
    for path in made:
        table = read_part(path)
        bad += parse_json((table.schema.metadata or {}).get(BAD, b"[]"))
        errors += len(table) - table[f"{prefix}{ERROR}"].null_count if f"{prefix}{ERROR}" in table.column_names else 0
        found += len(table) if path.rsplit("/", 1)[-1] in done else 0
    quarantine = f"{target}.quarantine.jsonl" if bad else None
    if quarantine:
        with open_output(quarantine) as file:
            file.writelines(
                (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace") for row in bad
            )
    rows = write_parts(made, target, kind)
    remove_tree(parts)
    return {"rows": rows, "errors": errors, "bad_rows": len(bad), "found_rows": found, "quarantine": quarantine}
