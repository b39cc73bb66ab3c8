"""From what a job names (files, globs, folders, `s3://`, `hf://`) to files, and from files to pieces that one process
can read by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.data.reading.encodings import is_split_by_lines
from raytrain_nlp.data.reading.files import (
    FORMATS,
    Piece,
    SourceFile,
    damage_reported,
    fingerprint_files,
    format_of,
    identify,
    open_source,
)
from raytrain_nlp.data.reading.folders import STATE, find_in_folder, split_spec, without_stale
from raytrain_nlp.errors import InputError, Problem, nearest

__all__ = ["PIECE_BYTES", "Piece", "SourceFile", "find_files", "fingerprint_files", "open_source", "split_file"]
PIECE_BYTES = 16 << 20
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", STATE}
"""Files that `datasets.save_to_disk` writes beside its Arrow files."""


def find_files(specs: list[str], where: str) -> list[SourceFile]:
    """All files of a split, in a stable order.

    Args:
        specs: files, globs, folders or addresses as the job names them.
        where: the job's key that names them, for error messages.

    Raises:
        InputError: something is missing, empty, cannot be reached or has an unknown format; with all such problems.
    """
    problems: list[Problem] = []
    files: list[SourceFile] = []
    for spec in specs:
        try:
            files += _files_of(spec, where)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return files


def _files_of(spec: str, where: str) -> list[SourceFile]:
    if spec.startswith("hf://"):
        from raytrain_nlp.data.reading.hub_datasets import find_dataset_files

        paths = find_dataset_files(spec, where)
    else:
        paths = _expand(spec, where)
    return [identify(path, where) for path in paths]


def _expand(spec: str, where: str) -> list[str]:
    """The files that a path, glob or folder stands for, as full paths; those of a glob or folder are sorted."""
    import fsspec

    try:
        filesystem, _ = fsspec.core.url_to_fs(spec)
        filesystem.invalidate_cache()  # a long-lived process must see what has changed since it listed the store
        remote, given = "://" in spec, spec
        spec, split = split_spec(filesystem, spec)
        path = fsspec.core.url_to_fs(spec)[1]
        if any(sign in spec for sign in "*?[") and (remote or not filesystem.exists(path)):
            found = without_stale(filesystem, sorted(name for name in filesystem.glob(path) if filesystem.isfile(name)))
            if not found:
                raise InputError(Problem(where, f"no file matches ({spec})", "Correct the pattern."))
        elif filesystem.isdir(path):
            found = find_in_folder(filesystem, path, split, _is_data, where, spec)
            if not found:
                raise InputError(
                    Problem(where, f"the folder has no data file ({spec})", f"Known suffixes: {' '.join(FORMATS)}.")
                )
        elif filesystem.exists(path):
            found = [path]
        else:
            raise InputError(
                Problem(
                    where, f"there is no such file or folder ({given})", _similar(filesystem, path) or "Check the path."
                )
            )
    except ImportError as error:
        raise InputError(
            Problem(where, f"cannot reach {spec} ({error})", "Install raytrain-nlp[s3] or [gcs].")
        ) from None
    except InputError:
        raise
    except Exception as error:  # storage backends raise whatever they like: credentials, DNS, permissions  # noqa: BLE001
        raise InputError(
            Problem(
                where, f"cannot be reached ({spec}: {type(error).__name__}: {error})", "Check address and credentials."
            )
        ) from None
    return [filesystem.unstrip_protocol(name) if remote else name for name in found]


def _similar(filesystem: Any, path: str) -> str:
    folder, _, name = path.rpartition("/")
    try:
        return nearest(name, [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(folder, detail=False)])
    except OSError:
        return ""


def _is_data(path: str) -> bool:
    """Is a file below a folder a data file: of a known format, and neither hidden nor in a hidden folder
    (.ipynb_checkpoints, _temporary)?
    """
    parts = path.strip("/").split("/")
    return (
        format_of(path) is not None
        and parts[-1] not in _NO_DATA
        and not any(part.startswith((".", "_")) for part in parts)
    )


def split_file(file: SourceFile, piece_bytes: int | None = None) -> Iterator[Piece]:
    """The pieces of a file in order. They have about `piece_bytes` bytes (default: PIECE_BYTES) where the format can be
    cut.
    """
    piece_bytes = piece_bytes or PIECE_BYTES
    if (
        file.format in ("jsonl", "text")
        and not file.path.lower().endswith(".gz")
        and _in_lines(file.path, file.format, file.digest)
    ):
        for start in range(0, file.size, piece_bytes):
            yield Piece(file.path, file.format, start, min(start + piece_bytes, file.size))
    elif file.format == "parquet":
        import pyarrow.parquet as parquet

        with damage_reported(file.path, file.format), open_source(file.path) as handle:
            metadata = parquet.ParquetFile(handle).metadata
            if not metadata.num_row_groups:
                yield Piece(file.path, file.format, 0, 0)
            start, size = 0, 0
            for group in range(metadata.num_row_groups):
                size += metadata.row_group(group).total_byte_size
                if size >= piece_bytes or group == metadata.num_row_groups - 1:
                    yield Piece(file.path, file.format, start, group + 1)
                    start, size = group + 1, 0
    else:
        yield Piece(file.path, file.format)


@functools.lru_cache(maxsize=1024)
def _in_lines(path: str, kind: str, digest: str) -> bool:
    with damage_reported(path, kind), open_source(path) as file:
        return is_split_by_lines(file.read(1 << 16), kind)
