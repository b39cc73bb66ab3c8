"""Where everything of a run lies. The only module that knows file names; standard library only.

storage_path/
  .cache/tokens/FINGERPRINT/      token shards, shared by all runs (data/shards.py)
  .cache/tokenizers/FINGERPRINT/  the tokenizer that made them
  .cache/sources/NAME-FINGERPRINT/  the rows of builtin:NAME (data/builtin/__init__.py)
  NAME/
    run.json                      status, resolved job, MLflow run id, fingerprints
    job.yaml                      the resolved job
    events.jsonl                  every figure and notice of the workers, in order
  events/                       in object storage: those of each start of the first rank, until the driver has joined them
    tracking.json                 how far the tracker has shipped events.jsonl
    quarantine.jsonl              rows left out, with source, line and reason
    predictions.json              of the last evaluation: figures of each class, confusion matrix, some rows with predictions
    evaluations/NAME/evaluation.json  what each `evaluate` found
    checkpoints/checkpoint-STEP/  committed when manifest.json is in it
    model/                        a plain Hugging Face directory
    logs/rank-N.log  logs/driver.log
    rows/RANK-PID.jsonl           the rows of each micro-batch, where they are noted (run/row_notes.py)
    reference/SPLIT-FINGERPRINT.npy  what the reference model says of the rows (trainer/objective/reference.py)
    profile/rank0.pt.trace.json.gz  a few steps of the first rank (training.profile_steps)
  SWEEP/
    sweep.json  sweep.yaml        status, settings; the sweep as it was given
    study.jsonl                   Optuna's journal: what the searcher knows
    trials/trial-NNNN/            a run each, with trial.json: values, figures, how it ended
    trials.csv  best.yaml  plots/  model/
"""  # noqa: E501

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.storage import Storage, storage_of
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.storage.untrusted import read_json_file

TRIAL = "trial.json"
"""In the folder of a trial: what its sweep knows of it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_run_name(name: str) -> str | None:
    """What is wrong with a run's name, or None. A name is one folder below storage_path and can never leave it."""
    if not _NAME.fullmatch(name) or ".." in name:
        return "a name has 1 to 100 letters, digits, '.', '_' or '-', starts with a letter or digit and has no '..'"
    return None


class RunPaths:
    """The files of one run below `storage_path/name`, on this node; building it touches nothing."""

    def __init__(self, storage: Storage | Path | str, name: str):
        self.store = storage if isinstance(storage, Storage) else storage_of(storage)
        """What all paths here belong to."""
        self.storage = self.store.root
        self.run = self.storage / name
        self.record = self.run / "run.json"
        self.job = self.run / "job.yaml"
        self.events = self.run / "events.jsonl"
        self.worker_events = self.run / "events"
        self.progress = self.run / "progress.json"
        self.tracking = self.run / "tracking.json"
        self.quarantine = self.run / "quarantine.jsonl"
        self.predictions = self.run / "predictions.json"
        self.evaluations = self.run / "evaluations"
        self.checkpoints = self.run / "checkpoints"
        self.model = self.run / "model"
        self.base_model = self.run / "base_model"
        self.logs = self.run / "logs"
        self.profile = self.run / "profile"
        self.places = self.run / "places"
        self.nodes = self.run / "nodes"
        self.hangs = self.run / "hangs"
        self.row_notes = self.run / "rows"
        self.reference = self.run / "reference"
        self.failure = self.run / "failure.json"
        self.feed_error = self.run / "feed_error.json"
        self.feed_wants = self.run / "feed_wants.json"
        self.move = self.run / "move.json"
        self.lock = self.run / "driver.lock"
        self.lease = self.run / "driver.json"
        self.ray = self.run / "ray"

    @property
    def address(self) -> str:
        """The run's folder as its user knows it."""
        return self.store.address_of(self.run)

    @property
    def database_folder(self) -> Path:
        """Where the tracker's default database lies: one for all runs of a storage path; in a bucket, to which two
        drivers cannot write one file, each run has its own.
        """
        return self.storage if self.store.shared else self.run


class SweepPaths(RunPaths):
    """The files of one sweep below `storage_path/name`; tracked like a run, its trials are runs below it."""

    def __init__(self, storage: Storage | Path | str, name: str):
        super().__init__(storage, name)
        self.record = self.run / "sweep.json"
        self.job = self.run / "sweep.yaml"
        self.study = self.run / "study.jsonl"
        self.trials = self.run / "trials"
        self.table = self.run / "trials.csv"
        self.best = self.run / "best.yaml"
        self.plots = self.run / "plots"

    def trial(self, number: int) -> RunPaths:
        return RunPaths(self.trials, trial_name(number))


def trial_name(number: int) -> str:
    """Name of the run of a trial."""
    return f"trial-{number:04d}"


def trial_number(name: str) -> int:
    """The number in a trial's name."""
    return int(name.rpartition("-")[2])


def cache_dir(storage_path: str | Path, kind: str) -> Path:
    """The folder of prepared things of one kind (`tokens`, `tokenizers`), shared by all runs of a storage path."""
    return Path(storage_path) / ".cache" / kind


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of it."""
    with replacing(
        path, errors="backslashreplace"
    ) as file:  # what UTF-8 has not, half a pair of surrogates, JSON writes so
        json.dump(value, file, indent=1, ensure_ascii=False)


def read_json(path: Path) -> Any:
    """Read JSON; None where there is no such file."""
    try:
        return read_json_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            Problem(str(path), f"cannot be read ({error})", "Restore the file, or start again with --overwrite.")
        ) from None
