"""Finds out from the first rows of a file what its columns hold: kind of values, number of different ones, lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from raytrain_nlp.config.labels import is_integer, is_whole, label_text
from raytrain_nlp.data.reading.readers import Row, read_rows
from raytrain_nlp.data.reading.sources import SourceFile, split_file

Kind = Literal[
    "text",
    "whole number",
    "number",
    "true or false",
    "list of texts",
    "list of whole numbers",
    "chat",
    "mapping of texts",
    "mapping",
    "other",
]
_MOST_ROWS = 20_000
"""Rows that are read at most."""
_PIECE_BYTES = 4 << 20
_PERCENTILE = 0.95
"""The percentile in `Column.p95_tokens`."""
_TOKENS_PER_WORD, _SIGNS_PER_TOKEN = 1.5, 4
"""Tokens of a word with common tokenizers, estimated high, and characters of a token, for text with few spaces such as
numbers and addresses.
"""


@dataclass(frozen=True)
class Column:
    """A column in a sample of rows."""

    name: str
    kind: Kind
    values: tuple[str, ...]
    """The different values (of a list its items) as texts, the most frequent first; empty for mappings and chats."""
    words: float
    """Mean number of words of a text, or of items of a list."""
    p95_tokens: int
    """Estimated tokens of a value: 95 % of the values have at most as many."""
    filled: int
    """Rows that have a value in this column."""
    names: tuple[str, ...] = ()
    """The keys of a mapping."""

    @property
    def repeats(self) -> float:
        """Mean number of occurrences of a value."""
        return self.filled / max(len(self.values), 1)


@dataclass(frozen=True)
class Sample:
    """The first rows of a source of rows, in figures."""

    columns: dict[str, Column]
    """Columns by name."""
    rows: int
    """Number of rows in the sample."""
    whole: bool
    """Are these all rows of the source?"""
    ascii: float
    """Share of ASCII among the characters of the first texts (0 to 1)."""


def read_sample(files: list[SourceFile]) -> Sample:
    """Read the first 20,000 rows of files. Raises `InputError` if a file is damaged."""
    found = itertools.chain.from_iterable(
        read_rows(piece) for file in files for piece in split_file(file, _PIECE_BYTES)
    )
    rows = [row.values for row in itertools.islice((row for row in found if isinstance(row, Row)), _MOST_ROWS + 1)]
    whole, rows = len(rows) <= _MOST_ROWS, rows[:_MOST_ROWS]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column(name, [row[name] for row in rows if row.get(name) is not None]) for name in names}
    text = "".join(itertools.islice((value for row in rows for value in row.values() if isinstance(value, str)), 2_000))
    return Sample(columns, len(rows), whole, sum(map(str.isascii, text)) / max(len(text), 1))


def _column(name: str, values: list[Any]) -> Column:
    """The figures of a column from its values, without None."""
    kind = _kind_of(values)
    counts: dict[str, int] = {}
    lists = kind in ("list of texts", "list of whole numbers")
    flat = itertools.chain.from_iterable(values) if lists else values
    for value in flat if kind not in ("chat", "mapping of texts", "mapping", "other") else ():
        text = label_text(value)
        counts[text] = counts.get(text, 0) + 1
    texts = [" ".join(map(str, value)) for value in values] if lists else list(_texts_in(values, kind))
    words = [len(value) for value in values] if lists else [len(text.split()) for text in texts]
    tokens = sorted(map(_tokens_in, texts))
    keys = {key: None for value in values if isinstance(value, dict) for key in value}
    return Column(
        name,
        kind,
        tuple(sorted(counts, key=lambda label: -counts[label])),
        sum(words) / max(len(words), 1),
        tokens[int(_PERCENTILE * (len(tokens) - 1))] if tokens else 0,
        len(values),
        tuple(keys) if kind in ("mapping of texts", "mapping") else (),
    )


def _tokens_in(text: str) -> int:
    """The estimated number of tokens of a text. A character beyond ASCII counts as a token, as in languages without
    spaces it may be one.
    """
    plain = len(text.encode("ascii", "ignore"))
    return int(max(len(text.split()) * _TOKENS_PER_WORD, plain / _SIGNS_PER_TOKEN + len(text) - plain))


def _texts_in(values: list[Any], kind: Kind) -> Iterable[str]:
    """The texts in the values of a column: of a chat those of all its messages, of a mapping each of its texts."""
    if kind == "text":
        return values
    if kind == "mapping of texts":
        return [text for value in values for text in value.values() if isinstance(text, str)]
    return [" ".join(str(message["content"]) for message in value) for value in values] if kind == "chat" else []


def _kind_of(values: list[Any]) -> Kind:
    if not values:
        return "other"
    if all(isinstance(value, bool) for value in values):
        return "true or false"
    if all(isinstance(value, str) for value in values):  # numbers of a CSV file are texts as well
        texts = [value.strip() for value in values if value.strip()]
        return _number_kind(texts) or "text"
    if all(isinstance(value, (int, float)) for value in values):
        return "whole number" if all(map(is_whole, values)) else "number"
    if all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        if items and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in items):
            return "chat"
        if items and all(isinstance(item, str) for item in items):
            return "list of texts"
        return "list of whole numbers" if items and all(type(item) is int for item in items) else "other"
    if all(isinstance(value, dict) and all(isinstance(text, str) for text in value.values()) for value in values):
        return "mapping of texts"
    return "mapping" if all(isinstance(value, dict) for value in values) else "other"


def _number_kind(texts: list[str]) -> Kind | None:
    if texts and all(map(is_integer, texts)):
        return "whole number"
    try:
        return "number" if texts and all(float(text) == float(text) for text in texts) else None
    except ValueError:
        return None
