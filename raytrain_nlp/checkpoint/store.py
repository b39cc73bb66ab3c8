"""Checkpoints of a run: staged, committed by a manifest written last and a rename, found again, verified, retired.

checkpoints/.staging-STEP-ID/    what ranks are writing; never looked at
checkpoints/checkpoint-STEP/     committed: manifest.json names every file with size and SHA-256
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raytrain_nlp.checkpoint.manifest import FORMAT as FORMAT
from raytrain_nlp.checkpoint.manifest import MANIFEST as MANIFEST
from raytrain_nlp.checkpoint.manifest import Checkpoint as Checkpoint
from raytrain_nlp.checkpoint.manifest import Damaged as Damaged
from raytrain_nlp.checkpoint.manifest import FileEntry as FileEntry
from raytrain_nlp.checkpoint.manifest import Manifest as Manifest
from raytrain_nlp.checkpoint.manifest import checkpoint_name as checkpoint_name
from raytrain_nlp.checkpoint.manifest import read_checkpoint
from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.paths import write_json
from raytrain_nlp.storage import Storage, shown
from raytrain_nlp.storage.atomic import fsync_dir, fsync_tree, remove, remove_whole
from raytrain_nlp.storage.names import UnsafeName, below, what_is_wrong

_NAME = re.compile(r"checkpoint-[0-9]+")
_OF_A_RANK = re.compile(r"(?:zero_pp_rank_|rng-)(\d+)")
"""DeepSpeed's names of what one rank alone wrote and reads, and ours."""


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None where it is no such name."""
    return int(name.rpartition("-")[2]) if _NAME.fullmatch(name) else None


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
    """Turn a complete staging folder into a checkpoint. Until the rename nothing can see it; after it all of it is
    there.
    """
    write_json(staging / MANIFEST, asdict(manifest))
    fsync_tree(staging, files=False)  # each rank has seen to its files
    target = root / checkpoint_name(manifest.step)
    if os.path.lexists(target):  # a damaged one of the same step, which resume passed over
        remove_whole(target)
    staging.rename(target)
    fsync_dir(root)
    return Checkpoint(target, manifest)


def scan(root: Path) -> tuple[list[Checkpoint], list[Damaged]]:
    """All folders of checkpoints, oldest step first: those whose manifest can be read, and those that are damaged there
    already.
    """
    good: list[Checkpoint] = []
    damaged: list[Damaged] = []
    for path in root.glob("checkpoint-*") if root.is_dir() else ():
        if step_of(path.name) is not None:
            found = read_checkpoint(path)
            if isinstance(found, Checkpoint):
                good.append(found)
            else:
                damaged.append(found)
    return sorted(good, key=lambda found: found.manifest.step), damaged


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Those whose manifest can be read, oldest step first. Who chooses one to go on from asks `find_checkpoint`, which
    names the others.
    """
    return scan(root)[0]


def files_of_ranks(manifest: Manifest, ranks: Iterable[int], world_size: int) -> list[FileEntry]:
    """What some ranks of `world_size` read of a checkpoint: not what belongs to others; all of it where another number
    of ranks wrote it.
    """
    if manifest.world_size != world_size:
        return manifest.files
    mine = {*ranks}
    return [
        entry for entry in manifest.files if (found := _OF_A_RANK.search(entry.path)) is None or int(found[1]) in mine
    ]


def damage(
    checkpoint: Checkpoint, rank: int = 0, world_size: int = 1, files: list[FileEntry] | None = None
) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, or of `files` (each is hashed by one rank), or
    None.
    """
    for i, entry in enumerate(checkpoint.manifest.files if files is None else files):
        if wrong := what_is_wrong(entry.path):
            return f"a file of its manifest {wrong}"
        try:
            if wrong := _damage_of(checkpoint.path, entry, with_hash=i % world_size == rank):
                return f"{entry.path} {wrong}"
        except OSError as error:
            return f"{entry.path} cannot be read: {error.strerror or error}"
    return None


def _damage_of(folder: Path, entry: FileEntry, with_hash: bool) -> str | None:
    path = folder / entry.path
    if path.is_symlink() or not path.is_file():
        return "is missing"
    try:
        below(folder, entry.path)
    except UnsafeName:
        return "lies behind a link that leads out of it"
    if path.stat().st_size != entry.size:
        return f"has {path.stat().st_size} bytes instead of {entry.size}"
    if not with_hash:
        return None
    with path.open("rb") as file:
        return None if _digest(file).hexdigest() == entry.sha256 else "does not match its hash"


def find_checkpoint(
    root: Path,
    agree: Callable[[Checkpoint], str | None] = damage,
    note: Callable[[str], None] = lambda line: None,
    scanned: tuple[list[Checkpoint], list[Damaged]] | None = None,
) -> Checkpoint | None:
    """The newest good checkpoint, or None where there is none at all. Each damaged one that is passed over is noted.

    Args:
        agree: says what is wrong with one; on several ranks it must say the same on all.
        scanned: what is there, where another process has looked.

    Raises `CheckpointError` where there are checkpoints but none is good: starting from step 0 would then lose work
    without a word.
    """
    good, bad = scanned or scan(root)
    chosen: Checkpoint | None = None
    wrong: dict[Path, str] = {}
    everything: list[Checkpoint | Damaged] = [*good, *bad]
    for found in sorted(everything, key=lambda found: step_of(found.path.name) or 0, reverse=True):
        if isinstance(found, Damaged):
            why = found.why
        elif chosen is not None:
            continue
        elif wrong_with := agree(found):
            why = wrong_with
        else:
            chosen = found
            continue
        wrong[found.path] = why
        note(
            f"{found.path.name} is damaged ({why}); "
            f"{'using the one before it' if chosen is None else 'it is passed over'}."
        )
    if chosen:
        return chosen
    if wrong:
        newest = next(iter(wrong))
        what = f"none of {len(wrong)} checkpoints is intact (the newest, {newest.name}: {wrong[newest]})"
        raise CheckpointError(f"{shown(root)}: {what}. Restore one, or start again with --overwrite.")
    return None


def apply_retention(storage: Storage, root: Path, limit: int | None, keep: set[int]) -> None:
    """Delete all but the newest `limit` checkpoints of a storage; those of the steps in `keep` stay besides. A kill
    half-way leaves no damaged one: the manifest, or the whole name, goes first.

    In a folder a damaged one is none of the newest. What a bucket has, has a manifest.
    """
    if limit is None:
        return
    if storage.shared:
        steps = [checkpoint.manifest.step for checkpoint in list_checkpoints(root)]
    else:
        steps = sorted(step for name in with_manifest(storage.list_tree(root)) if (step := step_of(name)) is not None)
    for step in steps[:-limit]:
        if step not in keep:
            storage.delete_tree(root / checkpoint_name(step), first=MANIFEST)


def with_manifest(names: Iterable[str]) -> set[str]:
    """Of the names of files below the checkpoints' folder, the folders that have a manifest."""
    return {folder for folder, _, name in (name.partition("/") for name in names) if name == MANIFEST}


def clean_leftovers(root: Path) -> None:
    """Remove what killed processes left half-written or half-deleted. Only while nobody writes."""
    for path in root.glob(".*-*") if root.is_dir() else ():
        remove(path)


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest
