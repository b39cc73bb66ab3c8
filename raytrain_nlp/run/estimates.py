"""What `check --calibrate` has estimated of a job, kept so that the report of its run can tell it beside what was."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import cache_dir, read_json, write_json

_OF_NO_TIME = ("name", "storage_path", "tracking", "checkpoint")
"""Sections in which a run may differ from the job that was calibrated."""


def keep_estimate(job: TrainJob, storage_path: str | Path, seconds: float, step_seconds: float) -> None:
    """Keep an estimate, in place of an earlier one of the same job.

    Args:
        seconds: of the whole run.
        step_seconds: of a mean step.
    """
    file = _file_of(job, storage_path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"seconds": seconds, "step_seconds": step_seconds})


def find_estimate(job: TrainJob, storage_path: str | Path) -> dict[str, Any]:
    """`seconds` and `step_seconds` of a job that was calibrated in this storage; empty if it was not."""
    with contextlib.suppress(InputError):  # of a file that somebody has changed, nothing is told
        return read_json(_file_of(job, storage_path)) or {}
    return {}


def _file_of(job: TrainJob, storage_path: str | Path) -> Path:
    values = {key: value for key, value in public_values(job).items() if key not in _OF_NO_TIME}
    key = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache_dir(storage_path, "estimates") / f"{key}.json"
