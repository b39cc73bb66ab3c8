"""Checkpoints of a run: staged, committed by a manifest written last and a rename, found again, verified, retired.

    checkpoints/.staging-STEP-ID/    what ranks are writing; never looked at
    checkpoints/checkpoint-STEP/     committed: manifest.json names every file with size and SHA-256
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.paths import fsync_dir, write_json

MANIFEST = "manifest.json"
FORMAT = 1
_OF_A_RANK = re.compile(r"(?:zero_pp_rank_|rng-)(\d+)")
"""DeepSpeed's names of what one rank alone wrote and reads, and ours."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint, as its writer saw it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What makes a folder a checkpoint."""

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


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint, as Hugging Face names it."""
    return f"checkpoint-{step}"


def staging_dir(root: Path, step: int) -> Path:
    """A new name to write a checkpoint under; not created."""
    return root / f".staging-{step}-{uuid.uuid4().hex[:8]}"


def describe_files(folder: Path, paths: Iterable[Path]) -> list[FileEntry]:
    """Size and hash of files just written, read back from the page cache and forced to disk."""
    entries = []
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
            os.fsync(file.fileno())
        entries.append(FileEntry(str(path.relative_to(folder)), path.stat().st_size, digest.hexdigest()))
    return entries


def commit(root: Path, staging: Path, manifest: Manifest) -> Checkpoint:
    """Turn a complete staging folder into a checkpoint. Until the rename nothing can see it; after it all of it is there."""
    write_json(staging / MANIFEST, asdict(manifest))
    fsync_dir(staging)
    target = root / checkpoint_name(manifest.step)
    if target.exists():  # a damaged one of the same step, which resume passed over
        retire(target)
    staging.rename(target)
    fsync_dir(root)
    return Checkpoint(target, manifest)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """All folders with a readable manifest, oldest step first."""
    found = []
    for path in root.glob("checkpoint-*") if root.is_dir() else ():
        try:
            values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            values["files"] = [FileEntry(**entry) for entry in values["files"]]
            found.append(Checkpoint(path, Manifest(**values)))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.manifest.step)


def files_of_ranks(manifest: Manifest, ranks: Iterable[int], world_size: int) -> list[FileEntry]:
    """What some ranks of `world_size` read of a checkpoint: not what belongs to others; all of it where another number of ranks wrote it."""
    if manifest.world_size != world_size:
        return manifest.files
    mine = {*ranks}
    return [entry for entry in manifest.files if (found := _OF_A_RANK.search(entry.path)) is None or int(found[1]) in mine]


def damage(checkpoint: Checkpoint, rank: int = 0, world_size: int = 1, files: list[FileEntry] | None = None) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, or of `files` (each is hashed by one rank), or None."""
    for i, entry in enumerate(checkpoint.manifest.files if files is None else files):
        path = checkpoint.path / entry.path
        if path.is_symlink() or not path.is_file():
            return f"{entry.path} is missing"
        if path.stat().st_size != entry.size:
            return f"{entry.path} has {path.stat().st_size} bytes instead of {entry.size}"
        if i % world_size == rank:
            with path.open("rb") as file:
                if _digest(file).hexdigest() != entry.sha256:
                    return f"{entry.path} does not match its hash"
    return None


def find_checkpoint(root: Path, agree: Callable[[Checkpoint], str | None] = damage, note: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The newest good checkpoint, or None where there is none at all.

    `agree` says what is wrong with one; on several ranks it must say the same on all. Raises `CheckpointError` where
    there are checkpoints but none is good: starting from step 0 would then lose work without a word.
    """
    checkpoints = list_checkpoints(root)
    for checkpoint in reversed(checkpoints):
        wrong = agree(checkpoint)
        if wrong is None:
            return checkpoint
        note(f"{checkpoint.path.name} is damaged ({wrong}); using the one before it.")
    if checkpoints:
        raise CheckpointError(f"{root}: none of {len(checkpoints)} checkpoints is intact. Restore one, or start again with --overwrite.")
    return None


def apply_retention(root: Path, limit: int | None, keep: set[int]) -> None:
    """Delete all but the newest `limit` checkpoints; those of the steps in `keep` stay besides."""
    if limit is None:
        return
    for checkpoint in list_checkpoints(root)[:-limit]:
        if checkpoint.manifest.step not in keep:
            retire(checkpoint.path)


def retire(path: Path) -> None:
    """Delete a checkpoint so that a kill half-way leaves no damaged one: its name goes first."""
    trash = path.parent / f".retired-{path.name}-{uuid.uuid4().hex[:8]}"
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def clean_leftovers(root: Path) -> None:
    """Remove what killed processes left half-written or half-deleted. Only while nobody writes."""
    for path in root.glob(".*-*") if root.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest
