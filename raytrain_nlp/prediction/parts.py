"""The parts of a prediction that was interrupted: whose they are, which are there, and how they become the output."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.run.saved_run import Run, Weights

if TYPE_CHECKING:
    from raytrain_nlp.data.reading.sources import SourceFile

_SAMPLES, _SAMPLE = 16, 1 << 16
"""Of a large file so many pieces of so many bytes are looked at: two trainings differ everywhere."""


_PIECES, _LEAST_PIECE, _MOST_PIECE = 256, 1 << 20, 16 << 20
"""How many pieces an input should have, each read by one task, and the bytes of the smallest and the largest."""


@dataclass(frozen=True)
class Layout:
    """Which rows of the input a part holds."""

    piece_bytes: int
    chunk_rows: int

    @classmethod
    def of(cls, files: list[SourceFile], chunk_rows: int) -> Layout:
        """That of an input: pieces follow from its size alone, so that they are the same when it is read again."""
        size = sum(file.size for file in files)
        return cls(min(max(size // _PIECES, _LEAST_PIECE), _MOST_PIECE), chunk_rows)


def what_parts_hold(
    run: Run,
    weights: Weights,
    job: TrainJob,
    files: list[SourceFile],
    options: dict[str, Any],
    prefix: str,
    layout: Layout,
    dtype: str | None,
) -> dict[str, Any]:
    """What parts depend on: those of another model, input or code are not mixed with ours. Says nothing of times, which
    copies do not keep.
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
    """Names of the parts that are there already, of the same model and input; those of another are deleted with
    `overwrite` alone.

    Raises:
        InputError: the output is there, or parts of another prediction are, or it cannot be written. No part has been
            lost.
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
    except Exception as error:  # storage backends raise whatever they like  # noqa: BLE001
        raise InputError(
            Problem(
                "--output",
                f"cannot be written ({target}: {type(error).__name__}: {error})",
                "Check path, address and permissions.",
            )
        ) from None
    return done


def _read_note(filesystem: Any, path: str) -> Any:
    """What the parts say of themselves; None where they say nothing that can be read."""
    try:
        with filesystem.open(path, "rb") as file:
            return json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def put_together(target: str, parts: str, kind: str, done: set[str], prefix: str) -> dict[str, Any]:
    """Make the output of all parts, and a file of the rows that could not be parsed beside it; then the parts go.
    Returns counts, by the names of `PredictResult`."""
    from raytrain_nlp.prediction.actor import ERROR
    from raytrain_nlp.prediction.files import BAD, list_parts, open_output, read_part, remove_tree, write_parts

    made, bad, errors, found = list_parts(parts), [], 0, 0
    for path in made:
        table = read_part(path)
        bad += json.loads((table.schema.metadata or {}).get(BAD, b"[]"))
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
