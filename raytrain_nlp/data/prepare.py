"""Preparing data: files are read, checked and tokenized into shards, once for each combination of dataset, tokenizer
and task. A folder of tokens is complete as soon as it has its final name.

    files --split--> pieces --prepare_piece--> shards + summaries --commit--> .cache/tokens/FINGERPRINT/

For large data `prepare_piece` runs on the cluster with Ray Data, in order, on a bounded number of pieces at a time. For
a few megabytes it runs in the driver, which is faster than starting anything.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.data.piece_summary import PieceSummary
from raytrain_nlp.data.reading.sources import Piece, SourceFile, split_file
from raytrain_nlp.data.shards import CHECKSUMS, DAMAGED, LENGTHS, MANIFEST
from raytrain_nlp.data.tokenize import FORMAT, HERE, PrepareSpec, prepare_piece
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import read_json, write_json
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.atomic import fsync_dir, remove_whole
from raytrain_nlp.storage.untrusted import parse_json

QUARANTINE = "quarantine.jsonl"
MapPieces = Callable[[Callable[[dict[str, Any]], dict[str, Any]], list[dict[str, Any]]], Iterable[dict[str, Any]]]


def find_tokens(folder: Path) -> Path | None:
    """The folder, where it holds complete tokens, or None. From object storage everything but the shards is downloaded;
    a shard is downloaded when its rows are needed.
    """
    storage = storage_of(folder)
    if (folder / DAMAGED).exists():
        return None
    if not (folder / MANIFEST).exists():
        if not storage.fetch(folder / MANIFEST):
            return None
        storage.fetch_tree(folder, lambda name: not name.endswith(".arrow"))
    return folder


def prepare_tokens(files: list[SourceFile], spec: PrepareSpec, folder: Path, map_pieces: MapPieces, where: str) -> Path:
    """Write the tokens of one split to `folder`, unless they exist.

    Args:
        map_pieces: `map_pieces(function, pieces)` yields the results in the order of the pieces.
        where: the job's key that names the files, for error messages.

    Raises:
        InputError: there are no rows, or too many bad ones, or a file cannot be read.
    """
    pieces = [piece for file in files for piece in split_file(file)]
    return prepare_pieces(
        pieces, spec, folder, map_pieces, lambda manifest, made: _check_rows(manifest, spec, where, made)
    )


def prepare_pieces(
    pieces: list[Piece],
    spec: PrepareSpec,
    folder: Path,
    map_pieces: MapPieces,
    check: Callable[[dict[str, Any], Path], None],
    lines: dict[str, int] | None = None,
) -> Path:
    """Write the tokens of pieces to `folder`, unless they exist.

    Args:
        check: called with the manifest and the folder of the tokens; raises `InputError` where they are not good
            enough.
        lines: path of a file -> number of its lines before its first piece.
    """
    if find_tokens(folder):
        check(read_json(folder / MANIFEST), folder)
        return folder
    staging = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True)
    (staging / HERE).touch()
    try:
        items = [
            {"index": i, "staging": str(staging), "folder": str(folder), "piece": asdict(piece), "spec": spec.plain()}
            for i, piece in enumerate(pieces)
        ]
        summaries = []
        for result in map_pieces(prepare_piece, items):
            summaries.append(PieceSummary(**parse_json(result["summary"])))
            if summaries[-1].problems:
                raise InputError([Problem(**problem) for problem in summaries[-1].problems])
            _bring_parts(summaries[-1], staging, folder)
        (staging / HERE).unlink()
        manifest = _commit(staging, summaries, spec, lines or {})
        check(manifest, staging)
        fsync_dir(staging)
        if folder.is_dir() and (not any(folder.iterdir()) or (folder / DAMAGED).exists()):
            remove_whole(folder)
        try:
            staging.rename(folder)
        except OSError:  # another driver prepared the same tokens meanwhile
            if not find_tokens(folder):
                raise
        fsync_dir(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _bring_parts(summary: PieceSummary, staging: Path, folder: Path) -> None:
    """Download the files that another node uploaded for a piece, and delete them in the storage."""
    storage = storage_of(folder)
    for name in summary.parts():
        if not (staging / name).exists() and storage.fetch(folder / name):
            shutil.copyfile(folder / name, staging / name)
            storage.delete([folder / name])


def _commit(staging: Path, summaries: list[PieceSummary], spec: PrepareSpec, lines: dict[str, int]) -> dict[str, Any]:
    """Join the files of all pieces: lengths, then the quarantine with line numbers of the whole files, the manifest
    last.
    """
    lines_before = Counter(lines)
    shards: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    bad_rows = left_out = unlearned = spread = 0
    cut: dict[str, Counter[str]] = {"cut": Counter(), "cut_targets": Counter()}
    with (staging / QUARANTINE).open("w", encoding="utf-8", errors="backslashreplace") as quarantine:
        for summary in summaries:
            first_line = lines_before[summary.path] + 1
            shards += [{**shard, "first_line": first_line} for shard in summary.shards]
            if summary.bad_file:
                with (staging / summary.bad_file).open(encoding="utf-8") as file:
                    for line in file:
                        bad = parse_json(line)
                        bad["line"] += first_line
                        quarantine.write(json.dumps({"source": summary.path, **bad}, ensure_ascii=False) + "\n")
                (staging / summary.bad_file).unlink()
            lines_before[summary.path] += summary.lines
            labels.update(summary.labels)
            bad_rows += summary.bad
            left_out += summary.left_out
            unlearned += summary.unlearned
            spread += summary.spread
            for name, counts in cut.items():
                counts.update(getattr(summary, name))
    rows = sum(shard["rows"] for shard in shards)
    _join_lengths(staging, shards, rows)
    tokens = sum(shard["tokens"] for shard in shards)
    manifest = {
        "format": FORMAT,
        "rows": rows,
        "bad_rows": bad_rows,
        "left_out": left_out,
        "tokens": tokens,
        "labels": dict(labels),
        "shards": shards,
    }
    manifest |= {"unlearned": unlearned, "spread": spread}
    manifest |= {**{name: dict(counts) for name, counts in cut.items()}, "limits": asdict(spec.lengths)}
    manifest["lines"] = {path: lines_before[path] for path in {summary.path for summary in summaries}}
    write_json(staging / MANIFEST, manifest)
    return manifest


def _join_lengths(staging: Path, shards: list[dict[str, Any]], rows: int) -> None:
    """Write all lengths to one array file, and all checksums to another, shard by shard."""
    for name, suffix, kind in ((LENGTHS, ".npy", np.int32), (CHECKSUMS, ".crc.npy", np.uint32)):
        if not rows:  # an empty file cannot be memory-mapped
            np.save(staging / name, np.zeros(0, dtype=kind))
            continue
        joined = np.lib.format.open_memmap(staging / name, mode="w+", dtype=kind, shape=(rows,))
        start = 0
        for shard in shards:
            part = staging / shard["file"].replace(".arrow", suffix)
            joined[start : start + shard["rows"]] = np.load(part)
            start += shard["rows"]
            part.unlink()
        joined.flush()


def _check_rows(manifest: dict[str, Any], spec: PrepareSpec, where: str, staging: Path) -> None:
    total, bad = manifest["rows"] + manifest["bad_rows"], manifest["bad_rows"]
    if not total and manifest["unlearned"]:
        todo = "Raise data.max_length, or give rows with shorter prompts."
        raise InputError(
            Problem(where, f"nothing is learned of any row; the first: {first_told(staging, left_out=True)}", todo)
        )
    if not total:
        raise InputError(Problem(where, "has no rows", "Give a file with rows."))
    too_many = bad / total > spec.max_bad_rows if spec.max_bad_rows < 1 else bad > spec.max_bad_rows
    if too_many or not manifest["rows"]:
        raise InputError(
            Problem(
                where,
                f"{bad} of {total} rows are bad, more than data.max_bad_rows ({spec.max_bad_rows:g}); the first: "
                f"{first_told(staging)}",
                "Mend the rows, or raise data.max_bad_rows.",
            )
        )


def first_told(folder: Path, left_out: bool = False) -> str:
    """The first entry in the quarantine of a folder of tokens as `source:line: reason`; "" where there is none.

    Args:
        left_out: look for rows that were left out because nothing in them would be learned, instead of bad rows.
    """
    with (folder / QUARANTINE).open(encoding="utf-8") as file:
        for told in map(json.loads, file):
            if told.get("left_out", False) == left_out:
                return f"{told['source']}:{told['line']}: {told['reason']}"
    return ""
