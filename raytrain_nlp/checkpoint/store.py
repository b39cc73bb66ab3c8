"""The checkpoints' folder of a run. A checkpoint is written to a staging folder, and committed by its manifest, written
last, and a rename. Here they are also found, verified and deleted.

checkpoints/.staging-STEP-ID/    what ranks are writing; never read
checkpoints/checkpoint-STEP/     committed: manifest.json names every file with size and SHA-256
"""

from __future__ import annotations

import functools
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
from raytrain_nlp.storage.disk import patiently
from raytrain_nlp.storage.names import UnsafeName, below, what_is_wrong

_NAME = re.compile(r"checkpoint-[0-9]+")
_OF_A_RANK = re.compile(r"(?:zero_pp_rank_|rng-)(\d+)")
"""Names of files that one rank alone writes and reads: DeepSpeed's shards, and our RNG states."""


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None where it is no such name."""
    return int(name.rpartition("-")[2]) if _NAME.fullmatch(name) else None


def staging_dir(root: Path, step: int) -> Path:
    """The path of a new staging folder, which is not created."""
    return root / f".staging-{step}-{uuid.uuid4().hex[:8]}"


def describe_files(folder: Path, paths: Iterable[Path]) -> list[FileEntry]:
    """Hash and fsync files that were just written below `folder`; their entries for the manifest. Raises
    `DiskError`.
    """

    def describe(path: Path) -> FileEntry:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
            os.fsync(file.fileno())
        return FileEntry(str(path.relative_to(folder)), path.stat().st_size, digest.hexdigest())

    return [patiently(functools.partial(describe, path), path) for path in paths]


def commit(root: Path, staging: Path, manifest: Manifest) -> Checkpoint:
    """Turn a complete staging folder into a checkpoint, atomically: readers find nothing before the rename, and all of
    it afterwards. Raises `DiskError`.
    """
    target = root / checkpoint_name(manifest.step)

    def move() -> None:
        if staging.exists():  # else an earlier try has come as far as the rename
            write_json(staging / MANIFEST, asdict(manifest))
            fsync_tree(staging, files=False)  # each rank has synced its own files
            if os.path.lexists(target):  # a damaged one of the same step, which resume passed over
                remove_whole(target)
            staging.rename(target)
        fsync_dir(root)

    patiently(move, target)
    return Checkpoint(target, manifest)


def scan(root: Path) -> tuple[list[Checkpoint], list[Damaged]]:
    """All checkpoints in a folder: those with a valid manifest, oldest step first, and the folders without one. Their
    other files are not verified.
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
    """The checkpoints with a valid manifest, oldest step first; their files are not verified. To resume from one, use
    `find_checkpoint`, which verifies them and reports damaged ones.
    """
    return scan(root)[0]


def files_of_ranks(manifest: Manifest, ranks: Iterable[int], world_size: int) -> list[FileEntry]:
    """The files that `ranks`, of a group of `world_size`, read to load a checkpoint: all but those that single other
    ranks wrote; all files where another number of ranks wrote it.
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
    """What is wrong with a checkpoint's files, as part of a sentence, or None. Each rank checks the sizes of all files,
    and the hashes of every `world_size`th.

    Args:
        files: the files to check; default: all in the manifest.
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
    """The newest intact checkpoint, or None where there are no checkpoints.

    Args:
        agree: returns what is wrong with a checkpoint, or None; on several ranks it must return the same on all.
        note: called with a line of text for each damaged checkpoint that is passed over.
        scanned: the result of `scan`, where another process has called it.

    Raises:
        CheckpointError: there are checkpoints, but none is intact; starting from step 0 would lose work silently.
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
    """Delete the checkpoints of a storage, except for the newest `limit` and those of the steps in `keep`.

    A process killed half-way leaves no damaged checkpoint: the manifest is deleted first, or the folder renamed.
    In a folder, checkpoints without a valid manifest are not counted among the newest; in a bucket, manifests are only
    listed, not read.

    Args:
        limit: None: delete nothing.
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
    """The names of folders that hold a manifest, given the names of all files below the checkpoints' folder."""
    return {folder for folder, _, name in (name.partition("/") for name in names) if name == MANIFEST}


def clean_leftovers(root: Path) -> None:
    """Remove half-written and half-deleted folders of killed processes. No process may be writing meanwhile."""
    for path in root.glob(".*-*") if root.is_dir() else ():
        remove(path)


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest
