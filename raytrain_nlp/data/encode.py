"""The rows of one piece of a file as columns of tokens, a shard at a time; bad rows go to a file of their own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.data.piece_summary import PieceSummary
from raytrain_nlp.data.reading.readers import BadRow, Blank, Row
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.tasks.base import Columns, Lengths, Task
from raytrain_nlp.tasks.truncation import FULL, FULL_TARGET, KEPT
from raytrain_nlp.user_code import describe

SHARD_ROWS = 32_768
_ENCODE_ROWS = 1_000

Preprocess = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""A function of the user's: the row as the task reads it, or None to leave it out."""


class PieceEncoder:
    """Checks and tokenizes the rows of one piece, and counts in a summary what became of them.

    Args:
        lengths: the most tokens of a row.
        preprocess: the user's `trainer.preprocess`.
        summary: of the piece; changed in place.
        bad_path: JSON Lines file for bad rows; written where there are any.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Any,
        lengths: Lengths,
        preprocess: Preprocess | None,
        summary: PieceSummary,
        bad_path: Path,
    ):
        self._task, self._tokenizer, self._lengths, self._preprocess = task, tokenizer, lengths, preprocess
        self._summary, self._bad_path = summary, bad_path
        self._columns: Columns = {}
        """Columns of tokens that belong to no shard yet."""
        self._good: list[tuple[int, dict[str, Any]]] = []
        """(line, values) of checked rows that are not tokenized yet."""

    def shards(self, rows: Iterator[Row | BadRow | Blank]) -> Iterator[Columns]:
        """The columns of one shard after the other. Raises `InputError` where `preprocess` fails."""
        for row in rows:
            self._summary.lines = row.line + 1
            if isinstance(row, Blank):
                continue
            self._take(row)
            if len(self._good) == _ENCODE_ROWS:
                self._encode()
            if len(self._columns.get("line", ())) >= SHARD_ROWS:
                yield self._columns
                self._columns = {}
        if self._good:
            self._encode()
        if self._columns.get("line"):
            yield self._columns

    def _take(self, row: Row | BadRow) -> None:
        """Put a row among the good ones, or report it as bad, or count it as left out."""
        if isinstance(row, BadRow):
            self._refuse(row.line, row.reason, row.text)
            return
        values = row.values
        if self._preprocess:
            changed = apply_preprocess(self._preprocess, row, self._summary.path)
            if changed is None:
                self._summary.left_out += 1
                return
            values = changed
        if (reason := self._task.check_row(values)) is not None:
            self._refuse(row.line, reason, _shown(values))
            return
        self._good.append((row.line, values))

    def _encode(self) -> None:
        """Tokenize the good rows."""
        good, summary = self._good, self._summary
        encoded = self._task.encode_rows([values for _, values in good], self._tokenizer, self._lengths)
        columns = encoded.columns
        full, full_targets = columns.pop(FULL, None), columns.pop(FULL_TARGET, None)
        kept = columns.pop(KEPT, []) or [len(row) for row in columns.get("input_ids", [])]
        _count_cut(full, kept, self._lengths.source, summary.cut)
        kept_targets = [len(row) for row in columns.get("labels", [])]
        _count_cut(full_targets, kept_targets, self._lengths.target, summary.cut_targets)
        for name, column in {"line": [good[place][0] for place in encoded.rows], **columns}.items():
            self._columns.setdefault(name, []).extend(column)
        for place, reason in encoded.refused.items():
            self._refuse(good[place][0], reason, _shown(good[place][1]))
        for place, reason in encoded.unlearned.items():
            self._report(good[place][0], reason, _shown(good[place][1]), left_out=True)
        summary.left_out += len(encoded.unlearned)
        summary.unlearned += len(encoded.unlearned)
        summary.spread += sum(count > 1 for count in Counter(encoded.rows).values())
        good.clear()

    def _refuse(self, line: int, reason: str, text: str) -> None:
        self._report(line, reason, text)
        self._summary.bad += 1

    def _report(self, line: int, reason: str, text: str, **more: bool) -> None:
        """Write a row and the reason to the file of bad rows."""
        entry = {"line": line, "reason": _escaped(reason), "row": _escaped(text), **more}
        with self._bad_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._summary.bad_file = self._bad_path.name


def _count_cut(full: list[int] | None, kept: list[int], limit: int | None, counts: dict[str, int]) -> None:
    """Count in `counts` the rows that were truncated to `limit`.

    Args:
        full: tokens of each row before truncation.
        kept: tokens of each row now.
        counts: `cut` or `cut_targets` of a summary.
    """
    for length, now in zip(full or (), kept, strict=False):
        if limit is not None and length > limit >= now:
            counts[str(length)] = counts.get(str(length), 0) + 1


def apply_preprocess(preprocess: Preprocess, row: Row, path: str) -> dict[str, Any] | None:
    """The row as the user's function returns it; None where it leaves the row out. Raises `InputError`, with the line
    in the user's code, where the function fails.
    """
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
    """The text with lone surrogates, which JSON may contain and UTF-8 cannot, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
