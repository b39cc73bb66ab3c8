"""One piece of a file: read, checked, tokenized, written as shards. A plain function of plain values, which runs
anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks import TaskConfig
from raytrain_nlp.data.reading.readers import BadRow, Blank, Row, read_rows
from raytrain_nlp.data.reading.sources import Piece, SourceFile, fingerprint_files
from raytrain_nlp.data.shards import write_shard
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Columns, Lengths, Task
from raytrain_nlp.tasks.truncation import FULL, FULL_TARGET, KEPT
from raytrain_nlp.user_code import UserObject, describe

FORMAT = 4
SHARD_ROWS = 32_768
_ENCODE_ROWS = 1_000
HERE = ".driver"
"""In a staging folder: this is the driver's node."""


@dataclass(frozen=True)
class PrepareSpec:
    """What tokens depend on, besides the files."""

    task: TaskConfig
    """The job's `task:` section."""
    tokenizer_dir: str
    tokenizer_fingerprint: str
    lengths: Lengths
    max_bad_rows: float
    preprocess: UserObject | None = None
    """The user's function of a row."""

    def key(self, files: list[SourceFile]) -> str:
        """Fingerprint of the tokens of `files`: content, task, tokenizer, length, format and library versions."""
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
        """The spec as values that Arrow carries to remote functions."""
        return {**asdict(self), "task": self.task.model_dump(mode="json")}


@dataclass
class PieceSummary:
    """What `prepare_piece` says of its piece; small, whatever the piece's size."""

    path: str
    lines: int = 0
    bad: int = 0
    left_out: int = 0
    """Rows the user's `preprocess` returned None for, and those of which nothing is learned."""
    unlearned: int = 0
    """Of `left_out`, those of which nothing is learned; they are told beside the bad ones."""
    spread: int = 0
    """Rows that have become several."""
    cut: dict[str, int] = field(default_factory=dict)
    """Rows that were cut, by the tokens they had before; `cut_targets`: the same of their targets."""
    cut_targets: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    bad_file: str | None = None
    problems: list[dict[str, str]] = field(default_factory=list)
    """Why the file cannot be read. A value, because a remote function's exception arrives as another one."""

    def parts(self) -> list[str]:
        """What the driver reads of a piece: lengths and bad rows."""
        return [shard["file"].replace(".arrow", ".npy") for shard in self.shards] + (
            [self.bad_file] if self.bad_file else []
        )


Preprocess = Callable[[dict[str, Any]], "dict[str, Any] | None"]


def prepare_piece(item: dict[str, Any]) -> dict[str, Any]:
    """Read, check, tokenize and write one piece; returns its summary as JSON. Runs in the driver or as a remote
    function.
    """
    try:
        summary = _prepare(item)
        _send_parts(summary, Path(item["staging"]), Path(item["folder"]))
    except InputError as error:
        summary = PieceSummary(item["piece"]["path"], problems=[asdict(problem) for problem in error.problems])
    return {"summary": json.dumps(asdict(summary))}


def _send_parts(summary: PieceSummary, staging: Path, folder: Path) -> None:
    """From a node that shares no folder with the driver: its shards go to their place at once, for what is named after
    its number has one content.
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
    summary = PieceSummary(piece.path)
    labels: Counter[str] = Counter()
    for number, columns in enumerate(_shard_columns(piece, task, tokenizer, spec, summary, staging, index)):
        name = f"shard-{index:06d}-{number:04d}"
        counts = np.array([len(row) for row in columns["input_ids"]], dtype=np.int32)
        np.save(staging / f"{name}.npy", counts)
        rows = write_shard(staging / f"{name}.arrow", columns)
        labels.update(task.classes(columns))
        summary.shards.append(
            {"file": f"{name}.arrow", "rows": rows, "source": piece.path, "tokens": int(counts.sum())}
        )
    summary.labels = dict(labels)
    return summary


def _shard_columns(
    piece: Piece, task: Task, tokenizer: Any, spec: PrepareSpec, summary: PieceSummary, staging: Path, index: int
) -> Iterator[Columns]:
    """The token columns of one shard after the other; bad rows go to a file beside them."""
    columns: Columns = {}
    good: list[tuple[int, dict[str, Any]]] = []
    staging.mkdir(parents=True, exist_ok=True)
    bad_path = staging / f"bad-{index:06d}.jsonl"
    bad_path.unlink(missing_ok=True)  # of a process that died in this piece

    def tell(line: int, reason: str, text: str, **more: bool) -> None:
        with bad_path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps(
                    {"line": line, "reason": _escaped(reason), "row": _escaped(text), **more}, ensure_ascii=False
                )
                + "\n"
            )
        summary.bad_file = bad_path.name

    def encode() -> None:
        encoded = task.encode_rows([values for _, values in good], tokenizer, spec.lengths)
        _count_cut(
            encoded.columns.pop(FULL, None),
            encoded.columns.pop(KEPT, []) or _lengths(encoded.columns.get("input_ids", [])),
            spec.lengths.source,
            summary.cut,
        )
        _count_cut(
            encoded.columns.pop(FULL_TARGET, None),
            _lengths(encoded.columns.get("labels", [])),
            spec.lengths.target,
            summary.cut_targets,
        )
        for name, values in {"line": [good[place][0] for place in encoded.rows], **encoded.columns}.items():
            columns.setdefault(name, []).extend(values)
        for place, reason in encoded.refused.items():
            tell(good[place][0], reason, _shown(good[place][1]))
        for place, reason in encoded.unlearned.items():
            tell(good[place][0], reason, _shown(good[place][1]), left_out=True)
        summary.bad += len(encoded.refused)
        summary.left_out += len(encoded.unlearned)
        summary.unlearned += len(encoded.unlearned)
        summary.spread += sum(count > 1 for count in Counter(encoded.rows).values())
        good.clear()

    preprocess = spec.preprocess.load() if spec.preprocess else None
    for row in read_rows(piece):
        summary.lines = row.line + 1
        if isinstance(row, Blank):
            continue
        if preprocess and isinstance(row, Row):
            values = apply_preprocess(preprocess, row, piece.path)
            if values is None:
                summary.left_out += 1
                continue
            row = Row(row.line, values)
        reason = row.reason if isinstance(row, BadRow) else task.check_row(row.values)
        if reason is not None:
            tell(row.line, reason, row.text if isinstance(row, BadRow) else _shown(row.values))
            summary.bad += 1
            continue
        assert not isinstance(row, BadRow), "its reason was told"
        good.append((row.line, row.values))
        if len(good) == _ENCODE_ROWS:
            encode()
        if len(columns.get("line", ())) >= SHARD_ROWS:
            yield dict(columns)
            columns.clear()
    if good:
        encode()
    if columns.get("line"):
        yield columns


def _lengths(rows: list[Any]) -> list[int]:
    return [len(row) for row in rows]


def _count_cut(full: list[int] | None, kept: list[int], limit: int | None, counts: dict[str, int]) -> None:
    """Count rows that are shorter than they were before they were cut to `limit`."""
    for length, now in zip(full or (), kept, strict=False):
        if limit is not None and length > limit >= now:
            counts[str(length)] = counts.get(str(length), 0) + 1


def apply_preprocess(preprocess: Preprocess, row: Row, path: str) -> dict[str, Any] | None:
    """The row as the user's function returns it. Raises `InputError` with the user's line where the function fails."""
    try:
        values = preprocess(dict(row.values))
    except Exception as error:
        what = f"failed at row {row.line + 1} of {path} ({describe(error)})"
        raise InputError(Problem("trainer.preprocess", what, "Mend the function or the row.")) from error
    if values is not None and not isinstance(values, dict):
        raise InputError(
            Problem("trainer.preprocess", f"returned {type(values).__name__}, not a dict or None", "Return the row.")
        )
    return values


def _shown(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)[:500]


def _escaped(text: str) -> str:
    """Text without lone surrogates, which JSON may hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
