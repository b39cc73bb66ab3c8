"""Passing checkpoints from trial to trial, as in population-based training: Ray Tune is given a pointer, never weights;
the files are hard-linked and verified.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.storage.atomic import fsync_dir, fsync_tree, remove_whole
from raytrain_nlp.storage.names import below, part

_GIVEN = "donated"
_KEPT = 3
"""Checkpoints of a trial that are kept for others. As hard links they take no space while the trial has them too."""


@dataclass(frozen=True)
class Pointer:
    """Names a checkpoint of a trial, for another trial to go on from."""

    trial: str
    folder: str
    """Where it is kept for others; empty where the trial had none yet."""
    step: int
    """Optimizer step."""
    training_iteration: int
    """Evaluations of the trial so far, as Ray Tune counts them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def donate(paths: RunPaths, step: int, training_iteration: int) -> Pointer:
    """Keep a trial's newest checkpoint up to `step` for other trials, also after the trial has deleted its own copy."""
    given = paths.run / _GIVEN
    found = [checkpoint for checkpoint in store.list_checkpoints(paths.checkpoints) if checkpoint.manifest.step <= step]
    if not found:
        return Pointer(paths.run.name, "", 0, 0)
    target = given / found[-1].path.name
    if not target.exists():
        given.mkdir(exist_ok=True)
        _link(found[-1], target)
        store.apply_retention(paths.store, given, _KEPT, set())
    return Pointer(paths.run.name, str(target), found[-1].manifest.step, training_iteration)


def apply_pointer(pointer: Pointer, paths: RunPaths, note: Callable[[str], None]) -> None:
    """Make the pointed-to checkpoint the newest of this trial. Raises `CheckpointError` where it is not intact."""
    for checkpoint in store.list_checkpoints(paths.checkpoints):
        if checkpoint.manifest.step > pointer.step:
            remove_whole(checkpoint.path)
    if not pointer.folder or (
        pointer.trial == paths.run.name and (paths.checkpoints / Path(pointer.folder).name).exists()
    ):
        return
    donor = _find(pointer, paths.storage, note)
    if wrong := store.damage(donor):
        raise CheckpointError(
            f"the checkpoint of {pointer.trial} at step {donor.manifest.step} cannot be inherited: {wrong}."
        )
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    target = paths.checkpoints / donor.path.name
    if target.exists():
        remove_whole(target)
    _link(donor, target)
    note(f"goes on from step {donor.manifest.step} of {pointer.trial}.")


def _find(pointer: Pointer, trials: Path, note: Callable[[str], None]) -> store.Checkpoint:
    """The checkpoint that a pointer names, or the newest that its trial keeps where that one was deleted. The pointer
    comes from a file and is not trusted: names are taken from it, but no paths.
    """
    given = store.list_checkpoints(below(trials, part(pointer.trial)) / _GIVEN)
    wanted = next((checkpoint for checkpoint in given if checkpoint.path.name == Path(pointer.folder).name), None)
    if wanted is None and given:
        note(
            f"step {pointer.step} of {pointer.trial} is not kept any more; its step {given[-1].manifest.step} is taken."
        )
    if not given:
        raise CheckpointError(f"{pointer.trial} keeps no checkpoint to inherit.")
    return wanted or given[-1]


def _link(checkpoint: store.Checkpoint, target: Path) -> None:
    """Link a checkpoint's files into a new folder `target`, or copy them where the file system has no hard links. The
    folder is renamed to `target` when it is complete.
    """
    staging = target.parent / f".linked-{target.name}-{uuid.uuid4().hex[:8]}"
    for name in (*(entry.path for entry in checkpoint.manifest.files), store.MANIFEST):
        source, there = below(checkpoint.path, name), staging / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():  # missing files are reported by the trial that verifies it
            _link_file(source, there)
    fsync_tree(staging)
    staging.rename(target)
    fsync_dir(target.parent)


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
