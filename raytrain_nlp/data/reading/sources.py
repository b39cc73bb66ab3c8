"""From what the job names (files, globs, folders, `s3://`, `hf://`) to pieces: parts of files that one process can read
alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raytrain_nlp.data.reading.encodings import is_split_by_lines
from raytrain_nlp.data.reading.folders import STATE, find_in_folder, split_spec, without_stale
from raytrain_nlp.errors import InputError, Problem, nearest

PIECE_BYTES = 16 << 20
_FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".txt": "text", ".text": "text",
    ".conll": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll", ".conllu": "conllu",
}  # fmt: skip
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", STATE}
"""What `datasets.save_to_disk` writes beside its Arrow files."""
_FULL_HASH_BYTES = 256 << 20


@dataclass(frozen=True)
class Piece:
    """A part of one file: bytes [start, end) of line formats, row groups [start, end) of Parquet and Arrow, else all of
    it.
    """

    path: str
    format: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file of a split, with what identifies its content."""

    path: str
    format: str
    size: int
    digest: str


def find_files(specs: list[str], where: str) -> list[SourceFile]:
    """All files of a split in a stable order. Raises `InputError` for whatever is missing, empty or of an unknown
    format.
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


def split_file(file: SourceFile, piece_bytes: int | None = None) -> Iterator[Piece]:
    """The pieces of a file, in order, of about `piece_bytes` (default: PIECE_BYTES) where its format allows."""
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

        with told_if_damaged(file.path, file.format), open_source(file.path) as handle:
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


def fingerprint_files(files: list[SourceFile]) -> list[dict[str, Any]]:
    """What identifies the content of a split, for the key of its tokens: order, format, size and digest; not the
    paths.
    """
    return [{key: value for key, value in asdict(file).items() if key != "path"} for file in files]


def open_source(path: str, **kwargs: Any) -> Any:
    """Open a local or remote file for reading bytes; `.gz` is decompressed."""
    import fsspec

    return fsspec.open(path, "rb", compression="infer", **kwargs).open()


@contextlib.contextmanager
def told_if_damaged(path: str, kind: str) -> Iterator[None]:
    """A file that is cut off, or not what its suffix says, as `InputError`: what is behind the damage is not skipped
    without a word.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            Problem(path, f"cannot be read as {kind} ({type(error).__name__}: {reason})", "Restore the file.")
        ) from error


def _files_of(spec: str, where: str) -> list[SourceFile]:
    if spec.startswith("hf://"):
        from raytrain_nlp.data.reading.hub_datasets import find_dataset_files

        paths = find_dataset_files(spec, where)
    else:
        paths = _expand(spec, where)
    return [_identify(path, where) for path in paths]


def _expand(spec: str, where: str) -> list[str]:
    """A file, glob or folder as a sorted list of full paths."""
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
                    Problem(where, f"the folder has no data file ({spec})", f"Known suffixes: {' '.join(_FORMATS)}.")
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
    """Is a file below a folder data: of a known format, neither hidden nor in a hidden folder (.ipynb_checkpoints,
    _temporary)?
    """
    parts = path.strip("/").split("/")
    return (
        _format_of(path) is not None
        and parts[-1] not in _NO_DATA
        and not any(part.startswith((".", "_")) for part in parts)
    )


def _format_of(path: str) -> str | None:
    name = path.lower().removesuffix(".gz")
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def _identify(path: str, where: str) -> SourceFile:
    """A file with what identifies its content; of a dataset with indices its `state.json`, for all its files."""
    import fsspec

    if path.rpartition("/")[2] == STATE:
        parts = [_identify(part, where) for part in [*saved_parts(path)[0], *saved_parts(path)[1]]]
        return SourceFile(
            path,
            "saved",
            sum(part.size for part in parts),
            hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
        )
    kind = _format_of(path)
    if kind is None:
        raise InputError(
            Problem(where, f"unknown file format ({path})", f"Known suffixes: {' '.join(_FORMATS)}, also with .gz.")
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


def saved_parts(state: str) -> tuple[list[str], list[str]]:
    """The Arrow files of a saved dataset by its `state.json`: those of rows, and those of indices."""
    with open_source(state) as file:
        values = json.loads(file.read())
    rows, indices = (
        [f"{state.rpartition('/')[0]}/{entry['filename']}" for entry in values.get(name) or []]
        for name in ("_data_files", "_indices_data_files")
    )
    return rows, indices


@functools.lru_cache(maxsize=1024)
def _in_lines(path: str, kind: str, digest: str) -> bool:
    with told_if_damaged(path, kind), open_source(path) as file:
        return is_split_by_lines(file.read(1 << 16), kind)


def _digest(filesystem: Any, path: str, info: dict[str, Any]) -> str:
    """Identity of the content: the store's own ETag, else a hash of all bytes, or of 64 samples and the time of a large
    file.
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
