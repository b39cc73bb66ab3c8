"""The data sets of a run, as its tracker is told of them."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.data import sources_of
from raytrain_nlp.data.reading.sources import SourceFile
from raytrain_nlp.paths import redact
from raytrain_nlp.planning.inputs import Files
from raytrain_nlp.planning.resolved import Resolved

_COUNTS = {"num_rows": "rows", "num_features": "features", "quarantined_rows": "bad_rows", "left_out_rows": "left_out", "cut_rows": "cut_rows"}  # fmt: skip # noqa: E501
_KEYS = {"hf": "path", "http": "url"}
"""Of MLflow's own sources, what the place is called."""
_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf", "http": "http", "https": "http"}


def describe_datasets(job: TrainJob, files: Files, resolved: Resolved) -> list[dict[str, Any]]:
    """For each split its name, the digest of its files, where they are and what became of their rows; plain values."""
    counts = resolved.counts()
    described = []
    for split, found in {"train": files.train, **files.validations}.items():
        specs = [redact(spec) for spec in sources_of(job.data.source_of(split))]
        scheme = specs[0].partition("://")[0] if "://" in specs[0] else ""
        kind = "code" if specs[0].startswith("builtin:") else _SCHEMES.get(scheme, "local")
        shown = ", ".join(spec.removeprefix("hf://") for spec in specs)
        described.append(
            {
                "split": split,
                "context": "training" if split == "train" else "validation",
                "name": _short(specs) if split in ("train", "validation") else f"{_short(specs)} ({split[11:]})",
                "digest": _digest(found),
                "source_type": kind,
                "source": {"tags": {"data": shown}} if kind == "code" else {_KEYS.get(kind, "uri"): shown},
                "profile": {key: counts[name][split] for key, name in _COUNTS.items() if split in counts[name]},
            }
        )
    return described


def _short(specs: list[str]) -> str:
    """As people name it: the last part of a path, all of a name of the hub."""
    first = specs[0]
    name = first.partition("://")[2] if first.startswith("hf://") else PurePosixPath(first).name
    if first.startswith("builtin:"):
        name = first
    return name + (f" and {len(specs) - 1} more" if len(specs) > 1 else "")


def _digest(files: list[SourceFile]) -> str:
    """16 hexadecimal digits of the files' content."""
    return hashlib.sha256("\0".join(file.digest for file in files).encode()).hexdigest()[:16]
