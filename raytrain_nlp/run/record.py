"""The record of a run (`run.json`): whether a job may start under a name, what the run was started with, how it ended.
A lock and a lease keep a second driver from writing the same run.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.config.auto import written_out
from raytrain_nlp.config.training import check_training
from raytrain_nlp.errors import CheckpointError, InputError, Problem
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.redaction import masked_values
from raytrain_nlp.run.lease import held
from raytrain_nlp.storage import open_storage
from raytrain_nlp.storage.atomic import recover_folder, remove

_LEFT = re.compile(r"\..+[.-][0-9a-f]{8}")
"""Names of files and folders that a killed process had not yet renamed into place (`storage.atomic.temporary_name`)."""
# Keys that --resume may not change: with other values it would not continue the interrupted run. _FREE are exceptions.
_FIXED = (
    "seed",
    "task",
    "model",
    "data",
    "training",
    "deepspeed",
    "workers.num_workers",
    "workers.use_gpu",
    "early_stopping",
)
_FREE = ("training.logging_steps", "training.logging_first_step", "data.feed_cpus_per_worker", "data.max_bad_rows")


def check_storage(job: TrainJob) -> list[Problem]:
    """A problem if `storage_path` cannot be written, or if the job streams its rows and it is no folder. Nothing stays
    behind.
    """
    storage = open_storage(job.storage_path)
    if problems := storage.check():
        return problems
    if job.data.streaming and not storage.shared:
        what, todo = "needs a storage_path that is a folder", "Remove it, or name a folder that all nodes share."
        return [Problem("data.streaming", what, todo)]
    return []


def check_name(job: TrainJob, paths: RunPaths, resume: bool, overwrite: bool) -> list[Problem]:
    """Problems that keep a run from starting under this name: it exists, or it does not and is to be resumed. A resumed
    job must also be the same job, and have a good checkpoint if it has any.
    """
    if overwrite and not resume and paths.record.exists():  # an unreadable record is overwritten as well
        return []
    record = read_json(paths.record)
    if record is None:
        if resume:
            return [
                Problem("--resume", f"there is no run '{job.name}' in {job.storage_path}", "Start it without --resume.")
            ]
        if paths.run.exists() and not all(is_of_a_start(path, paths) for path in paths.run.iterdir()):
            return [
                Problem("name", f"the folder exists and is not that of a run ({paths.address})", "Choose another name.")
            ]
        return []
    if resume and overwrite:
        return [Problem("--overwrite", "excludes --resume", "Give one of them.")]
    if not resume and not overwrite:
        state = record.get("status", "unknown") if isinstance(record, dict) else "unknown"
        return [
            Problem(
                "name",
                f"the run '{job.name}' exists already ({state})",
                "Add --resume to continue it, --overwrite to replace it, or choose another name.",
            )
        ]
    if resume and not (isinstance(record, dict) and isinstance(record.get("job"), dict)):
        return [
            Problem(
                "--resume",
                f"the record of the run holds no job ({paths.record})",
                "Restore it, or start again with --overwrite.",
            )
        ]
    return _changes(record["job"], public_values(job)) + _check_checkpoints(paths) if resume else []


def is_of_a_start(path: Path, paths: RunPaths) -> bool:
    """Is a file one of those that a driver creates before it writes the record of the run?"""
    return path in (paths.lock, paths.lease) or path.name.startswith(f".{paths.lease.name}.")


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[Problem]:
    """A problem for each key of `_FIXED` whose value differs between the run's job and the resumed one."""
    old, new = (
        flatten({**job, "training": check_training(job.get("training", {}))[0]}) for job in (written_out(before), after)
    )
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [
        Problem(
            key,
            f"differs from the run's own value ({new.get(key)!r}, was {old.get(key)!r})",
            "Resume with the run's value, or start a new run.",
        )
        for key in changed
        if key.startswith(_FIXED) and key not in _FREE
    ]


def _check_checkpoints(paths: RunPaths) -> list[Problem]:
    try:
        if paths.store.shared:
            store.find_checkpoint(paths.checkpoints)
        else:  # only the manifests are on this node; the workers verify the files
            store.find_checkpoint(paths.checkpoints, lambda checkpoint: None)
    except CheckpointError as error:
        return [Problem("--resume", str(error))]
    return []


def check_data(record: RunRecord, fingerprint: str) -> None:
    """Raises `InputError` unless the rows, their tokens and the plan are still those with which the run began.

    Args:
        fingerprint: `WorkerSpec.data_fingerprint` of the resumed job.
    """
    before = record.values.get("data_fingerprint", fingerprint)
    if before != fingerprint:
        what = "the data, the tokenizer or their libraries have changed since the run began"
        raise InputError(Problem("--resume", what, "Bring back what it began with, or start a new run."))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections under dotted keys, such as `training.learning_rate`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def now() -> str:
    """The time as records have it: that of this host, with its distance from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class RunRecord:
    """The content of `run.json`, of a run whose lock this driver holds."""

    def __init__(self, paths: RunPaths):
        self._path = paths.record
        self.values: dict[str, Any] = read_json(paths.record) or {
            "created": now(),
            "drivers": 0,
        }

    def update(self, **values: Any) -> None:
        self.values |= values
        write_json(self._path, masked_values(self.values))


@contextlib.contextmanager
def open_run(paths: RunPaths, overwrite: bool) -> Iterator[RunRecord]:
    """Reserve the run's folder for this driver while inside.

    On this host `flock` does it, which the kernel releases however the process ends. Some shared file systems do not
    pass such locks on to other hosts, so there is a lease as well (`lease.held`).

    Args:
        overwrite: remove what an earlier run of this name has left.

    Raises:
        InputError: another driver holds the lock or the lease.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    where = paths.address
    with paths.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                Problem("name", f"another driver is writing the run ({where})", "Wait for it, or stop it.")
            ) from None
        with held(paths.lease):
            _clean(paths)
            if overwrite:
                kept = (paths.lock.name, paths.lease.name)
                paths.store.delete_tree(paths.run, first=paths.record.name, keep=kept)
            yield RunRecord(paths)


def _clean(paths: RunPaths) -> None:
    """Restore exported folders that a killed process had moved aside to replace them, and remove its temporary
    files.
    """
    for folder in (paths.model, paths.base_model):
        recover_folder(folder)
    for path in paths.run.iterdir():
        if _LEFT.fullmatch(path.name) and not is_of_a_start(path, paths):
            remove(path)
