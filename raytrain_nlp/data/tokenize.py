"""Tokenizing one piece of a file: its rows are read, checked, tokenized and written as shards, in the driver or in a
remote function.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks import TaskConfig
from raytrain_nlp.data.encode import PieceEncoder
from raytrain_nlp.data.piece_summary import PieceSummary
from raytrain_nlp.data.reading.readers import read_rows
from raytrain_nlp.data.reading.sources import Piece, SourceFile, fingerprint_files
from raytrain_nlp.data.shards import checksums_of, write_shard
from raytrain_nlp.errors import InputError
from raytrain_nlp.redaction import masked
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.user_code import UserObject

FORMAT = 4
HERE = ".driver"
"""Name of a file in the staging folder, by which a process sees that it runs on the driver's node."""


@dataclass(frozen=True)
class PrepareSpec:
    """Everything that tokens depend on, except for the files."""

    task: TaskConfig
    """The job's `task:` section."""
    tokenizer_dir: str
    tokenizer_fingerprint: str
    lengths: Lengths
    max_bad_rows: float
    preprocess: UserObject | None = None
    """The user's `trainer.preprocess`."""

    def key(self, files: list[SourceFile]) -> str:
        """Fingerprint of the tokens of `files`: content of the files, task, tokenizer, lengths, `preprocess`, format,
        and versions of the libraries.
        """
        parts = [
            FORMAT,
            fingerprint_files(files),
            self.task.model_dump(mode="json"),
            self.tokenizer_fingerprint,
            asdict(self.lengths),
            *([self.preprocess.fingerprint()] if self.preprocess else []),
            version("tokenizers"),
            version("transformers"),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def plain(self) -> dict[str, Any]:
        """The spec as values that Arrow can carry to a remote function."""
        return {**asdict(self), "task": self.task.model_dump(mode="json")}


def prepare_piece(item: dict[str, Any]) -> dict[str, Any]:
    """Read, check, tokenize and write one piece, in the driver or in a remote function.

    Args:
        item: `index` of the piece, `staging` and final `folder`, `piece` and `spec` as plain values.

    Returns:
        The `PieceSummary` as JSON, under `summary`.
    """
    try:
        summary = _prepare(item)
        _send_parts(summary, Path(item["staging"]), Path(item["folder"]))
    except InputError as error:
        summary = PieceSummary(item["piece"]["path"], problems=[asdict(problem) for problem in error.problems])
    return {"summary": json.dumps(asdict(summary))}


def _send_parts(summary: PieceSummary, staging: Path, folder: Path) -> None:
    """Upload the files of a piece from a node that shares no folder with the driver. Shards go to the final folder at
    once: the content of a shard depends on its name alone.
    """
    storage = storage_of(folder)
    if storage.shared or (staging / HERE).exists():
        return
    for name in [*summary.parts(), *(shard["file"] for shard in summary.shards)]:
        storage.push(staging / name, to=folder / name)
        (staging / name).unlink()


def _prepare(item: dict[str, Any]) -> PieceSummary:
    from raytrain_nlp.modeling.tokenizer import load_tokenizer

    spec, staging, index = _spec_of(item["spec"]), Path(item["staging"]), item["index"]
    task = build_task(spec.task)
    tokenizer = load_tokenizer(spec.tokenizer_dir)
    piece = Piece(**item["piece"])
    source = masked(piece.path)
    summary = PieceSummary(source)
    labels: Counter[str] = Counter()
    staging.mkdir(parents=True, exist_ok=True)
    bad_path = staging / f"bad-{index:06d}.jsonl"
    bad_path.unlink(missing_ok=True)  # left by a process that died while it worked on this piece
    preprocess = spec.preprocess.load() if spec.preprocess else None
    encoder = PieceEncoder(task, tokenizer, spec.lengths, preprocess, summary, bad_path)
    for number, columns in enumerate(encoder.shards(read_rows(piece))):
        name = f"shard-{index:06d}-{number:04d}"
        counts = np.array([len(row) for row in columns["input_ids"]], dtype=np.int32)
        np.save(staging / f"{name}.npy", counts)
        rows = write_shard(staging / f"{name}.arrow", columns)
        np.save(staging / f"{name}.crc.npy", checksums_of(staging / f"{name}.arrow"))
        labels.update(task.classes(columns))
        summary.shards.append({"file": f"{name}.arrow", "rows": rows, "source": source, "tokens": int(counts.sum())})
    summary.labels = dict(labels)
    return summary


def _spec_of(values: dict[str, Any]) -> PrepareSpec:
    from pydantic import TypeAdapter

    from raytrain_nlp.config.tasks import TaskConfig

    task, user = TypeAdapter(TaskConfig).validate_python(values["task"]), values["preprocess"]
    return PrepareSpec(
        **{
            **values,
            "task": task,
            "lengths": Lengths(**values["lengths"]),
            "preprocess": UserObject(**user) if user else None,
        }
    )
