"""The folder in which a run was started. Relative paths of its job are resolved against it by `evaluate`, `predict` and
other verbs that are started in another folder.
"""

from __future__ import annotations

import glob
import os
from typing import Any


def origin_of(record: dict[str, Any]) -> str:
    """The folder in which the run's driver was started; the current directory if this machine has no such folder.

    Args:
        record: the content of `run.json`.
    """
    folder = record.get("folder")
    return folder if isinstance(folder, str) and os.path.isdir(folder) else os.getcwd()


def from_origin(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """The values of a job, in which relative names of files and folders that exist below `folder` are made absolute."""
    if folder == os.getcwd():
        return job
    sections = {section: dict(job[section]) for section in ("model", "data") if isinstance(job.get(section), dict)}
    for section, key in (("model", "name_or_path"), ("model", "tokenizer"), ("data", "train"), ("data", "validation")):
        if key in sections.get(section, {}):
            sections[section][key] = _absolute(sections[section][key], folder)
    return {**job, **sections}


def _absolute(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(source, folder) for name, source in value.items()}
    if isinstance(value, list):
        return [_absolute(source, folder) for source in value]
    if not isinstance(value, str) or "://" in value or value.startswith("~"):
        return value
    path = os.path.join(folder, value)
    whole = path.rpartition(":")[0] if not os.path.exists(path) else path  # FOLDER:SPLIT
    return path if os.path.exists(whole) or glob.glob(path) else value
