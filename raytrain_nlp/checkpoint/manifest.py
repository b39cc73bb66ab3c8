"""A checkpoint's `manifest.json`, which makes a folder a checkpoint. It is parsed as untrusted input."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from raytrain_nlp.storage.names import what_is_wrong
from raytrain_nlp.storage.untrusted import read_json_file

MANIFEST = "manifest.json"
FORMAT = 1
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint, as its writer saw it."""

    path: str
    """Relative to the checkpoint's folder."""
    size: int
    """Bytes."""
    sha256: str
    """64 lower-case hexadecimal digits."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`: which state a checkpoint holds, and its files."""

    step: int
    world_size: int
    zero_stage: int
    data_fingerprint: str
    versions: dict[str, str]
    files: list[FileEntry]
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint; its files are not verified yet."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Damaged:
    """A folder with the name of a checkpoint, but without a valid manifest."""

    path: Path
    why: str


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint, as Hugging Face names it."""
    return f"checkpoint-{step}"


def read_checkpoint(path: Path) -> Checkpoint | Damaged:
    """The checkpoint in a folder, or what is wrong with its manifest."""
    try:
        manifest = parse_manifest(read_json_file(path / MANIFEST))
    except FileNotFoundError:
        return Damaged(path, f"{MANIFEST} is missing")
    except OSError as error:
        return Damaged(path, f"{MANIFEST} cannot be read: {error.strerror or error}")
    except RecursionError:
        return Damaged(path, f"{MANIFEST} is no manifest: nested too deep")
    except json.JSONDecodeError as error:
        empty = (path / MANIFEST).stat().st_size == 0
        return Damaged(path, f"{MANIFEST} is {'empty' if empty else f'no JSON: {error}'}")
    except ValueError as error:
        return Damaged(path, f"{MANIFEST} is no manifest: {error}")
    if path.name != checkpoint_name(manifest.step):
        return Damaged(path, f"{MANIFEST} is that of step {manifest.step}")
    return Checkpoint(path, manifest)


def parse_manifest(values: Any) -> Manifest:
    """A manifest of what its JSON holds. Raises `ValueError` where it is none of this format."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds {_kind(values)}, no object")
    if (found := values.get("format")) != FORMAT or type(found) is not int:
        raise ValueError(f"its format is {found!r:.40}, this version reads {FORMAT}")
    known = {field.name for field in fields(Manifest)}
    if missing := sorted(known - values.keys()):
        raise ValueError(f"it has no {', '.join(missing)}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"it has what no manifest has: {', '.join(unknown)!r:.80}")
    for name, least in (("step", 0), ("world_size", 1), ("zero_stage", 0)):
        _check_count(name, values[name], least)
    if not isinstance(values["data_fingerprint"], str):
        raise ValueError(f"data_fingerprint is {_kind(values['data_fingerprint'])}, no text")
    versions, files = values["versions"], values["files"]
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError("versions are no texts by name")
    if not isinstance(files, list):
        raise ValueError(f"files are {_kind(files)}, no list")
    return Manifest(**{**values, "files": [_file(entry) for entry in files]})


def _file(entry: Any) -> FileEntry:
    if not isinstance(entry, dict) or entry.keys() != {"path", "size", "sha256"}:
        raise ValueError(f"a file is described by something else than path, size and sha256 ({entry!r:.80})")
    if wrong := what_is_wrong(entry["path"]):
        raise ValueError(f"the path of a file {wrong}")
    _check_count(f"the size of {entry['path']}", entry["size"], 0)
    if not isinstance(entry["sha256"], str) or not _HASH.fullmatch(entry["sha256"]):
        raise ValueError(f"the hash of {entry['path']} is none ({entry['sha256']!r:.80})")
    return FileEntry(**entry)


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is no number from {least} on ({value!r:.40})")


def _kind(value: Any) -> str:
    return {type(None): "null", bool: "true or false", str: "a text", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )
