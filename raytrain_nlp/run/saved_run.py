"""Reads a run that has ended or was interrupted: its job, its labels, its tokenizer, and the weights that the user asks
for.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.checkpoint import store
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.auto import WORKERS
from raytrain_nlp.errors import CheckpointError, InputError, Problem, nearest
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.paths import TRIAL, RunPaths, SweepPaths, cache_dir, read_json
from raytrain_nlp.run.origin import from_origin, origin_of
from raytrain_nlp.run.sync import fetch_run
from raytrain_nlp.storage import open_storage, shown, storage_of
from raytrain_nlp.storage.names import what_is_wrong
from raytrain_nlp.storage.untrusted import read_json_file

_WEIGHTLESS = ("config.json", "adapter_config.json", "generation_config.json")


@dataclass(frozen=True)
class Run:
    """A run as other verbs use it: what `run.json` says, and where its files are."""

    paths: RunPaths
    job: TrainJob
    labels: list[str]
    """The names of the classes in the order of their ids; empty if the task has none."""
    tokenizer: Path
    """The folder of the tokenizer."""
    record: dict[str, Any]
    """The content of `run.json`."""
    storage: Path
    """The folder of the cache and the default tracker: the run's storage path, or that of a trial's sweep."""
    mlflow_run_id: str | None

    @property
    def result(self) -> dict[str, Any]:
        """The result that `train` returned; empty if the run has not ended well."""
        return self.record.get("result") or {}

    @property
    def code_folder(self) -> str:
        """The folder in which the user's modules are searched: the one in which the run was started."""
        return origin_of(self.record)

    @property
    def chosen(self) -> list[str]:
        """Keys of `workers` that the job left to `auto`. Another machine may choose other values for them."""
        return [key for key in self.record.get("chosen") or {} if key in WORKERS]

    def token_dir(self) -> Path:
        """The tokenizer's folder in the cache; its name is part of the cache key of prepared tokens. It is the folder
        that training used, if that still exists.
        """
        from raytrain_nlp.modeling.tokenizer import cache_folder

        return cache_folder(self.tokenizer, cache_dir(self.storage, "tokenizers"))

    @property
    def base(self) -> str:
        """The name or folder of the base model, for a run that trains a LoRA adapter."""
        return self.job.model.name_or_path or str(self.paths.base_model)


@dataclass(frozen=True)
class Weights:
    """The weights of a run that were chosen: those of the exported model, or of a checkpoint."""

    name: str
    """`model`, or the name of the checkpoint's folder."""
    folder: Path
    checkpoint: store.Checkpoint | None = None
    """None for the exported model."""


def find_run(folder: str | Path) -> Run:
    """The run in `folder`; for the folder of a sweep the run of its best trial.

    Raises:
        InputError: the folder is not that of a run, the sweep has no best trial yet, or the run no tokenizer.
    """
    path = at_hand(folder)
    sweep = SweepPaths(path.parent, path.name)
    if record := read_json(sweep.record):
        best = (record.get("result") or {}).get("best_trial")
        if not isinstance(best, int):
            raise InputError(
                Problem(
                    "RUN",
                    f"the sweep has no best trial yet ({shown(path)})",
                    "Wait for its end, or name a run below its trials/.",
                )
            )
        path = sweep.trial(best).run
        fetch_run(RunPaths(path.parent, path.name))
    paths = RunPaths(path.parent, path.name)
    record = read_json(paths.record)
    if not isinstance(record, dict) or not isinstance(record.get("job"), dict):
        raise InputError(
            Problem(
                "RUN",
                f"is no folder of a run ({shown(path)})",
                _similar(path) or "Name storage_path/name of a run, e.g. runs/quickstart.",
            )
        )
    task = {"task": record["task"]} if record.get("task") else {}  # completed by label names found in the data
    job = load_job(
        {
            **from_origin(record["job"], origin_of(record)),
            **task,
            "storage_path": shown(paths.storage),
            "name": path.name,
        }
    )
    paths.store.fetch_tree(paths.model, lambda name: "tokenizer" in name or name in _WEIGHTLESS)
    labels = record.get("labels") or (record.get("result") or {}).get("labels") or []
    trial = (path.parent.parent / sweep.record.name).exists()
    storage = (path.parent.parent.parent if trial else paths.storage).resolve()
    tokenizer = _find_tokenizer(record.get("tokenizer"), paths, storage)
    if tokenizer is None:
        raise InputError(Problem("RUN", f"has no tokenizer yet ({path})", "Start it again with --resume."))
    tracked = read_json(path / TRIAL) if trial else record
    return Run(paths, job, labels, tokenizer, record, storage, (tracked or {}).get("mlflow_run_id"))


def find_weights(run: Run, which: str | int | None) -> Weights:
    """The weights that the user asks for. The files of a checkpoint are verified.

    Args:
        which: `last` for the newest good checkpoint, `best`, or a step. None for the exported `model/`, or, if there is
            none, the newest good checkpoint.

    Raises:
        InputError: there are no such weights, or they are damaged.
    """
    if which is None:
        run.paths.store.fetch_tree(run.paths.model)
    if (
        which is None
        and (run.paths.model / "config.json").exists()
        or which is None
        and (run.paths.model / "adapter_config.json").exists()
    ):
        return Weights("model", run.paths.model)
    good, damaged = store.scan(run.paths.checkpoints)
    checkpoints = {found.manifest.step: found for found in good}
    if not checkpoints and not damaged:
        raise InputError(
            Problem(
                "RUN", f"has neither a model nor a checkpoint ({run.paths.run})", "Continue it with train --resume."
            )
        )
    if which in (None, "last"):
        try:
            found = store.find_checkpoint(run.paths.checkpoints, _damage, scanned=(good, damaged))
        except CheckpointError as error:
            raise InputError(Problem("RUN", str(error))) from None
        assert found is not None, "there is at least one checkpoint, as checked above"
        return Weights(found.path.name, found.path, found)
    step = (
        _best_step(max(checkpoints.items())[1])
        if which == "best" and checkpoints
        else int(which)
        if str(which).isdecimal()
        else None
    )
    if wrong := next((found.why for found in damaged if store.step_of(found.path.name) == step), None):
        raise InputError(
            Problem("--checkpoint", f"the checkpoint of step {step} is damaged ({wrong})", "Choose another.")
        )
    if step not in checkpoints:
        asked = f"step {step}" if step is not None else "a best step" if which == "best" else repr(which)
        raise InputError(
            Problem(
                "--checkpoint",
                f"there is no checkpoint of {asked}",
                f"Give last, best or a step: {', '.join(map(str, checkpoints))}.",
            )
        )
    if wrong := _damage(checkpoints[step]):
        raise InputError(
            Problem("--checkpoint", f"the checkpoint of step {step} is damaged ({wrong})", "Choose another.")
        )
    return Weights(checkpoints[step].path.name, checkpoints[step].path, checkpoints[step])


def at_hand(folder: str | Path) -> Path:
    """The local folder of a run. For a run in object storage it is a folder with copies of the run's small files, which
    is removed when this process ends.
    """
    if open_storage(folder).shared:
        # absolute, because Ray's workers have other current directories
        return Path(os.path.abspath(Path(folder).expanduser()))
    kept = contextlib.ExitStack()
    storage = open_storage(folder, kept.enter_context(scratch_folder()))
    path = storage.root
    kept.enter_context(storage.in_use())
    atexit.register(kept.close)
    fetch_run(RunPaths(path.parent, path.name))
    return path


def _find_tokenizer(named: object, paths: RunPaths, storage: Path) -> Path | None:
    """The tokenizer's folder, in the cache of the storage or else in `model/`; None if neither has it.

    Args:
        named: `tokenizer` of `run.json`, a folder of which only the last part counts.
        storage: see `Run.storage`.
    """
    name = str(named).rpartition("/")[2]
    caches = (
        []
        if what_is_wrong(name)
        else [cache_dir(root, "tokenizers") / name for root in dict.fromkeys((storage, paths.storage.resolve()))]
    )
    for folder in caches:
        storage_of(folder).fetch_tree(folder)
    return next((folder for folder in (*caches, paths.model) if (folder / "tokenizer_config.json").exists()), None)


def _damage(checkpoint: store.Checkpoint) -> str | None:
    """What is wrong with the files of a checkpoint, or None. Fetches them from object storage first."""
    storage_of(checkpoint.path).fetch_tree(checkpoint.path)
    return store.damage(checkpoint)


def _best_step(newest: store.Checkpoint) -> int | None:
    try:
        storage_of(newest.path).fetch(newest.path / "trainer_state.json")
        step = read_json_file(newest.path / "trainer_state.json").get("best_global_step")
    except (OSError, ValueError, AttributeError):
        return None
    return step if isinstance(step, int) else None


def _similar(path: Path) -> str:
    siblings = (
        [
            entry.name
            for entry in path.parent.iterdir()
            if (entry / "run.json").exists() or (entry / "sweep.json").exists()
        ]
        if path.parent.is_dir()
        else []
    )
    return nearest(path.name, siblings)
