"""What a run has read, as MLflow's data sets: name, digest and counts, for training and for validation."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

from raytrain_nlp.config.data import DataConfig, sources_of
from raytrain_nlp.data.reading.sources import SourceFile
from raytrain_nlp.redaction import masked_address

_COUNTS = {
    "num_rows": "rows",
    "num_features": "features",
    "quarantined_rows": "bad_rows",
    "left_out_rows": "left_out",
    "cut_rows": "cut_rows",
}
"""Key of a data set's profile -> the run's name of the same count."""
_KEYS = {"hf": "path", "http": "url"}
"""Of MLflow's own sources, what the place is called."""
_SOURCE_TYPES = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf", "http": "http", "https": "http"}
"""How a job writes a source -> MLflow's word for its kind."""


def describe_datasets(
    data: DataConfig, files: dict[str, list[SourceFile]], counts: dict[str, Any]
) -> list[dict[str, Any]]:
    """The plain values of a `datasets` event: for each split its name, the digest of its files, where they are, and how
    many rows they have.

    Args:
        files: by split, `train` and `validation` or `validation.NAME`.
        counts: what has become of the rows -> split -> number.
    """
    described = []
    for split, found in files.items():
        specs = [masked_address(spec) for spec in sources_of(data.source_of(split))]
        scheme = specs[0].partition("://")[0] if "://" in specs[0] else ""
        kind = "code" if specs[0].startswith("builtin:") else _SOURCE_TYPES.get(scheme, "local")
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


def log_datasets(client: Any, run_id: str, datasets: list[dict[str, Any]]) -> None:
    """Log the data sets of a `datasets` event as inputs of a run; MLflow keeps each once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                found["name"][:500],
                found["digest"][:36],
                found["source_type"],
                json.dumps(found["source"])[:65_000],
                profile=json.dumps(found["profile"]),
            ),
            [InputTag("mlflow.data.context", found["context"])],
        )
        for found in datasets
    ]
    client.log_inputs(run_id, inputs)


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
