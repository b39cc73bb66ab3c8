"""Files of a split: what identifies their content, how they are opened, and what is said of damaged ones."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raytrain_nlp.data.reading.compressed import bounded
from raytrain_nlp.data.reading.folders import STATE, files_named
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.storage.untrusted import parse_json

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "text", ".text": "text",
    ".conll": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll", ".conllu": "conllu",
}  # fmt: skip
"""Suffix -> format: the name of its reader in `readers.py`."""
_FULL_HASH_BYTES = 256 << 20
"""Files up to this size are hashed as a whole."""


@dataclass(frozen=True)
class Piece:
    """A part of one file: bytes from `start` up to `end` of a file of lines, row groups from `start` up to `end` of a
    Parquet file, otherwise the whole file.
    """

    path: str
    format: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file of a split: path, format, size in bytes, and a digest of its content."""

    path: str
    format: str
    size: int
    digest: str


def open_source(path: str, **kwargs: Any) -> Any:
    """Open a local or remote file for reading bytes; `.gz` is decompressed. Reading raises `InputError` where it
    expands further than rows do.
    """
    import fsspec

    file = fsspec.open(path, "rb", compression="infer", **kwargs).open()
    if not path.lower().endswith(".gz"):
        return file
    filesystem, inner = fsspec.core.url_to_fs(path, **kwargs)
    return bounded(file, path, filesystem.size(inner) or 0)


@contextlib.contextmanager
def damage_reported(path: str, kind: str) -> Iterator[None]:
    """Raise `InputError` for a file that is cut off or does not have its suffix's format, so that rows after the damage
    are not silently lost.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            Problem(path, f"cannot be read as {kind} ({type(error).__name__}: {reason})", "Restore the file.")
        ) from error


def saved_parts(state: str) -> tuple[list[str], list[str]]:
    """The Arrow files of a saved dataset, given its `state.json`: those with rows, and those with indices."""
    with open_source(state) as file:
        values = parse_json(file.read())
    folder = state.rpartition("/")[0]
    return files_named(values, "_data_files", folder), files_named(values, "_indices_data_files", folder)


def format_of(path: str) -> str | None:
    """The format of a file by its suffix; None for an unknown one."""
    name = path.lower().removesuffix(".gz")
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def identify(path: str, where: str) -> SourceFile:
    """The file with a digest of its content. For a dataset with indices it is the `state.json`, with a digest of all
    its files.

    Args:
        where: the job's key that names the file, for error messages.

    Raises:
        InputError: the file is empty, cannot be read, or has an unknown suffix.
    """
    import fsspec

    if path.rpartition("/")[2] == STATE:
        parts = [identify(part, where) for part in [*saved_parts(path)[0], *saved_parts(path)[1]]]
        return SourceFile(
            path,
            "saved",
            sum(part.size for part in parts),
            hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
        )
    kind = format_of(path)
    if kind is None:
        raise InputError(
            Problem(where, f"unknown file format ({path})", f"Known suffixes: {' '.join(FORMATS)}, also with .gz.")
        )
    filesystem, inner = fsspec.core.url_to_fs(path)
    try:
        info = filesystem.info(inner)
        if not info["size"]:
            raise InputError(Problem(where, f"the file is empty ({path})", "Give a file with rows."))
        return SourceFile(path, kind, info["size"], _digest(filesystem, inner, info))
    except OSError as error:
        raise InputError(
            Problem(where, f"cannot be read ({path}: {error.strerror or error})", "Check its permissions.")
        ) from None


def _digest(filesystem: Any, path: str, info: dict[str, Any]) -> str:
    """What identifies the content: the ETag or hash that the storage gives, otherwise a hash of all bytes, or for a
    large file of 64 samples of 1 MiB and the time of its last change.
    """
    for key in ("ETag", "etag", "sha256", "blob_id", "md5Hash"):
        if info.get(key):
            return f"{key}:{info[key]}"
    size = info["size"]
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as file:
        if size <= _FULL_HASH_BYTES:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        else:
            digest.update(str(info.get("mtime", "")).encode())
            for i in range(64):
                file.seek(size // 64 * i)
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


def fingerprint_files(files: list[SourceFile]) -> list[dict[str, Any]]:
    """Format, size and digest of each file, in order, without the paths: what tokens depend on."""
    return [{key: value for key, value in asdict(file).items() if key != "path"} for file in files]
