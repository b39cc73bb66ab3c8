"""Prepare: files -> checked rows -> tokens -> shards, once for a dataset, tokenizer and task; committed by a rename.

    files --split--> pieces --prepare_piece--> shards + summaries --commit--> .cache/tokens/FINGERPRINT/

`prepare_piece` is a plain function of one piece. Large data run it on the cluster with Ray Data, in order, with a bounded
number in flight; data of a few megabytes run it in the driver, which takes less time than starting anything.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.data.readers import BadRow, Blank, Row, read_rows
from raytrain_nlp.data.shards import LENGTHS, MANIFEST, write_shard
from raytrain_nlp.data.sources import Piece, SourceFile, fingerprint_files, split_file
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import fsync_dir, read_json, write_json
from raytrain_nlp.remote.mirror import delete, fetch, fetch_tree, push
from raytrain_nlp.remote.places import remote_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.user_code import UserObject, describe

FORMAT = 2
SHARD_ROWS = 32_768
_ENCODE_ROWS = 1_000
QUARANTINE = "quarantine.jsonl"
_HERE = ".driver"
"""In a staging folder: this is the driver's node."""


@dataclass(frozen=True)
class PrepareSpec:
    """What tokens depend on, besides the files."""

    task: Any
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
            FORMAT, fingerprint_files(files), self.task.model_dump(mode="json"), self.tokenizer_fingerprint, asdict(self.lengths),
            *([self.preprocess.fingerprint()] if self.preprocess else []), version("tokenizers"), version("transformers"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

@dataclass
class PieceSummary:
    """What `prepare_piece` says of its piece; small, whatever the piece's size."""

    path: str
    lines: int = 0
    bad: int = 0
    left_out: int = 0
    """Rows the user's `preprocess` returned None for."""
    labels: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    bad_file: str | None = None
    problems: list[dict[str, str]] = field(default_factory=list)
    """Why the file cannot be read. A value, because a remote function's exception arrives as another one."""


Preprocess = Callable[[dict[str, Any]], "dict[str, Any] | None"]
MapPieces = Callable[[Callable[[dict[str, Any]], dict[str, Any]], list[dict[str, Any]]], Iterable[dict[str, Any]]]


def find_tokens(folder: Path) -> Path | None:
    """The committed tokens of a fingerprint, or None. Of those in object storage the rows come when they are needed."""
    if not (folder / MANIFEST).exists():
        if not fetch(folder / MANIFEST):
            return None
        fetch_tree(folder, lambda name: not name.endswith(".arrow"))
    return folder


def prepare_tokens(files: list[SourceFile], spec: PrepareSpec, folder: Path, map_pieces: MapPieces, where: str) -> Path:
    """Make the tokens of one split and commit them to `folder`, unless they are there.

    `map_pieces(function, pieces)` yields the results in order. Raises `InputError` for no rows, or too many bad ones.
    """
    pieces = [piece for file in files for piece in split_file(file)]
    return prepare_pieces(pieces, spec, folder, map_pieces, lambda manifest, made: _check_rows(manifest, spec, where, made))


def prepare_pieces(
    pieces: list[Piece], spec: PrepareSpec, folder: Path, map_pieces: MapPieces, check: Callable[[dict[str, Any], Path], None], lines: dict[str, int] | None = None
) -> Path:
    """Make the tokens of pieces and commit them to `folder`, unless they are there.

    Args:
        check: raises `InputError` where the manifest, and what lies in the folder it is given, are not good enough.
        lines: lines of each file that lie before its first piece.
    """
    if find_tokens(folder):
        check(read_json(folder / MANIFEST), folder)
        return folder
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True)
    (staging / _HERE).touch()
    try:
        items = [{"index": i, "staging": str(staging), "folder": str(folder), "piece": asdict(piece), "spec": _plain(spec)} for i, piece in enumerate(pieces)]
        summaries = []
        for result in map_pieces(prepare_piece, items):
            summaries.append(PieceSummary(**json.loads(result["summary"])))
            if summaries[-1].problems:
                raise InputError([Problem(**problem) for problem in summaries[-1].problems])
            _bring_parts(summaries[-1], staging, folder)
        (staging / _HERE).unlink()
        manifest = _commit(staging, summaries, lines or {})
        check(manifest, staging)
        fsync_dir(staging)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        try:
            staging.rename(folder)
        except OSError:  # another driver prepared the same tokens meanwhile
            if not find_tokens(folder):
                raise
        fsync_dir(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def prepare_piece(item: dict[str, Any]) -> dict[str, Any]:
    """Read, check, tokenize and write one piece; returns its summary as JSON. Runs in the driver or as a remote function."""
    try:
        summary = _prepare(item)
        _send_parts(summary, Path(item["staging"]), Path(item["folder"]))
    except InputError as error:
        summary = PieceSummary(item["piece"]["path"], problems=[asdict(problem) for problem in error.problems])
    return {"summary": json.dumps(asdict(summary))}


def _parts(summary: PieceSummary) -> list[str]:
    """What the driver reads of a piece."""
    return [shard["file"].replace(".arrow", ".npy") for shard in summary.shards] + ([summary.bad_file] if summary.bad_file else [])


def _send_parts(summary: PieceSummary, staging: Path, folder: Path) -> None:
    """From a node that shares no folder with the driver: its shards go to their place at once, for what is named after its number has one content."""
    if remote_of(folder) is None or (staging / _HERE).exists():
        return
    for name in [*_parts(summary), *(shard["file"] for shard in summary.shards)]:
        push(staging / name, to=folder / name)
        (staging / name).unlink()


def _bring_parts(summary: PieceSummary, staging: Path, folder: Path) -> None:
    if remote_of(folder) is None:
        return
    for name in _parts(summary):
        if not (staging / name).exists() and fetch(folder / name):
            (folder / name).rename(staging / name)
            delete([folder / name])


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
        summary.shards.append({"file": f"{name}.arrow", "rows": rows, "source": piece.path, "tokens": int(counts.sum())})
    summary.labels = dict(labels)
    return summary


def _shard_columns(piece: Piece, task: Any, tokenizer: Any, spec: PrepareSpec, summary: PieceSummary, staging: Path, index: int) -> Iterator[dict]:
    """The token columns of one shard after the other; bad rows go to a file beside them."""
    columns: dict[str, list] = {}
    good: list[tuple[int, dict]] = []
    staging.mkdir(parents=True, exist_ok=True)
    bad_path = staging / f"bad-{index:06d}.jsonl"
    bad_path.unlink(missing_ok=True)  # of a process that died in this piece

    def encode() -> None:
        encoded = {"line": [line for line, _ in good], **task.encode([values for _, values in good], tokenizer, spec.lengths)}
        for name, values in encoded.items():
            columns.setdefault(name, []).extend(values)
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
            text = row.text if isinstance(row, BadRow) else json.dumps(row.values, ensure_ascii=False, default=str)[:500]
            with bad_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"line": row.line, "reason": _escaped(reason), "row": _escaped(text)}, ensure_ascii=False) + "\n")
            summary.bad += 1
            summary.bad_file = bad_path.name
            continue
        good.append((row.line, row.values))
        if len(good) == _ENCODE_ROWS:
            encode()
        if len(columns.get("line", ())) >= SHARD_ROWS:
            yield dict(columns)
            columns.clear()
    if good:
        encode()
    if columns:
        yield columns


def apply_preprocess(preprocess: Preprocess, row: Row, path: str) -> dict[str, Any] | None:
    """The row as the user's function returns it. Raises `InputError` with the user's line where the function fails."""
    try:
        values = preprocess(dict(row.values))
    except Exception as error:
        what = f"failed at row {row.line + 1} of {path} ({describe(error)})"
        raise InputError(Problem("trainer.preprocess", what, "Mend the function or the row.")) from error
    if values is not None and not isinstance(values, dict):
        raise InputError(Problem("trainer.preprocess", f"returned {type(values).__name__}, not a dict or None", "Return the row."))
    return values


def _escaped(text: str) -> str:
    """Text without lone surrogates, which JSON may hold and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _commit(staging: Path, summaries: list[PieceSummary], lines: dict[str, int]) -> dict[str, Any]:
    """Join what the pieces wrote: lengths, quarantine with line numbers of whole files, manifest last."""
    lines_before = Counter(lines)
    shards: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    bad_rows = left_out = 0
    with (staging / QUARANTINE).open("w", encoding="utf-8", errors="backslashreplace") as quarantine:
        for summary in summaries:
            first_line = lines_before[summary.path] + 1
            shards += [{**shard, "first_line": first_line} for shard in summary.shards]
            if summary.bad_file:
                with (staging / summary.bad_file).open(encoding="utf-8") as file:
                    for line in file:
                        bad = json.loads(line)
                        bad["line"] += first_line
                        quarantine.write(json.dumps({"source": summary.path, **bad}, ensure_ascii=False) + "\n")
                (staging / summary.bad_file).unlink()
            lines_before[summary.path] += summary.lines
            labels.update(summary.labels)
            bad_rows += summary.bad
            left_out += summary.left_out
    rows = sum(shard["rows"] for shard in shards)
    _join_lengths(staging, shards, rows)
    tokens = sum(shard["tokens"] for shard in shards)
    manifest = {"format": FORMAT, "rows": rows, "bad_rows": bad_rows, "left_out": left_out, "tokens": tokens, "labels": dict(labels), "shards": shards}
    manifest["lines"] = {path: lines_before[path] for path in {summary.path for summary in summaries}}
    write_json(staging / MANIFEST, manifest)
    return manifest


def _join_lengths(staging: Path, shards: list[dict[str, Any]], rows: int) -> None:
    """One memory-mapped array of all lengths, filled shard by shard."""
    lengths = np.lib.format.open_memmap(staging / LENGTHS, mode="w+", dtype=np.int32, shape=(rows,)) if rows else None
    start = 0
    for shard in shards:
        part = staging / shard["file"].replace(".arrow", ".npy")
        lengths[start : start + shard["rows"]] = np.load(part)
        start += shard["rows"]
        part.unlink()
    if lengths is None:
        np.save(staging / LENGTHS, np.zeros(0, dtype=np.int32))
    else:
        lengths.flush()


def _check_rows(manifest: dict[str, Any], spec: PrepareSpec, where: str, staging: Path) -> None:
    total, bad = manifest["rows"] + manifest["bad_rows"], manifest["bad_rows"]
    if not total:
        raise InputError(Problem(where, "has no rows", "Give a file with rows."))
    too_many = bad / total > spec.max_bad_rows if spec.max_bad_rows < 1 else bad > spec.max_bad_rows
    if too_many or not manifest["rows"]:
        with (staging / QUARANTINE).open(encoding="utf-8") as file:
            first = json.loads(next(file))
        raise InputError(
            Problem(
                where,
                f"{bad} of {total} rows are bad, more than data.max_bad_rows ({spec.max_bad_rows:g}); the first: "
                f"{first['source']}:{first['line']}: {first['reason']}",
                "Mend the rows, or raise data.max_bad_rows.",
            )
        )


def _plain(spec: PrepareSpec) -> dict[str, Any]:
    """The spec as values that Arrow carries to remote functions."""
    return {**asdict(replace(spec, task=None)), "task": spec.task.model_dump(mode="json")}


def _spec_of(values: dict[str, Any]) -> PrepareSpec:
    from pydantic import TypeAdapter

    from raytrain_nlp.config.tasks import TaskConfig

    task, user = TypeAdapter(TaskConfig).validate_python(values["task"]), values["preprocess"]
    return PrepareSpec(**{**values, "task": task, "lengths": Lengths(**values["lengths"]), "preprocess": UserObject(**user) if user else None})
