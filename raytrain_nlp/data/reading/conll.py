"""CoNLL files: a word and its tags on each line, a blank line between sentences. Each row is a sentence.

The first column is the word (`tokens`), the last one its tag (`ner_tags`), those between are `column2`, `column3`, ...
CoNLL-U has ten columns with known names: `tokens` (its FORM), `lemmas`, `upos`, `xpos`, `feats`, `head`, `deprel`,
`deps`, `misc`; ranges of words (`1-2`) and empty nodes (`1.1`) are left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from raytrain_nlp.data.reading.encodings import as_utf8
from raytrain_nlp.data.reading.files import Piece, open_source
from raytrain_nlp.data.reading.rows import BadRow, Row, bad_row

_UNIVERSAL = ("", "tokens", "lemmas", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_WORD_ID = re.compile(r"\d+")
_COMMENT = re.compile(r"#\s*(?:[\w:.-]+\s*=|(?:newdoc|newpar|id|sent_id|text)\b)")
_DOCUMENT = "-DOCSTART-"
_BLANK = " \t\r\n"

Line = tuple[int, str]
"""Number of a line, from 0, and its text."""


def read_conll(piece: Piece) -> Iterator[Row | BadRow]:
    """The sentences of a file. One with a bad line becomes a `BadRow` whose reason has the number of that line."""
    columns: _Columns | None = None
    for lines in _sentences(piece.path):
        if columns is None:
            columns = _Columns(lines[0][1], universal=piece.format == "conllu")
        yield columns.row(lines)


def _sentences(path: str) -> Iterator[list[Line]]:
    """The lines of each sentence, without comments."""
    sentence: list[Line] = []
    width = None
    with (
        open_source(path) as file,
        io.TextIOWrapper(as_utf8(file)[0], encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines,
    ):
        for number, line in enumerate(lines):
            line = line.rstrip("\r\n")
            if not line.strip(_BLANK) or line.startswith(_DOCUMENT):
                if sentence:
                    yield sentence
                sentence = []
            elif not (line.startswith("#") and not sentence and _is_comment(line, width)):
                sentence.append((number, line))
                width = width or len(_fields(line, "\t" in line))
    if sentence:
        yield sentence


def _is_comment(line: str, width: int | None) -> bool:
    """Is a line before the first word of a sentence a comment? `#` may be a word too, as in tweets.

    Args:
        width: columns of the file; None before they are known.
    """
    return bool(_COMMENT.match(line)) or len(_fields(line, "\t" in line)) != (width or 2)


def _fields(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs else re.split(r"[ \t]+", line.strip(_BLANK))


class _Columns:
    """Number and names of the columns of a file, read from its first line."""

    def __init__(self, first: str, universal: bool):
        self._tabs = "\t" in first
        self._width = len(_fields(first, self._tabs))
        self._universal = universal and self._width == len(_UNIVERSAL)
        between = tuple(f"column{place}" for place in range(2, self._width))
        self._names = _UNIVERSAL if self._universal else ("tokens", *between, "ner_tags")[: max(self._width, 1)]

    def row(self, lines: list[Line]) -> Row | BadRow:
        start, text = lines[0][0], "\n".join(line for _, line in lines).encode("utf-8", "surrogateescape")
        words = []
        for number, line in lines:
            fields = _fields(line, self._tabs)
            if reason := self._wrong(fields, line):
                return bad_row(start, f"line {number + 1}: {reason}", text)
            if not self._universal or _WORD_ID.fullmatch(fields[0]):
                words.append(fields)
        columns = zip(*words) if words else ((),) * self._width
        return Row(start, {name: list(values) for name, values in zip(self._names, columns) if name})

    def _wrong(self, fields: list[str], line: str) -> str | None:
        """Why a line does not have the columns of the first one, or None."""
        if len(fields) != self._width:
            count = f"{len(fields)} column{'s' if len(fields) > 1 else ''}"
            return f"{count} where the file's first line has {self._width}"
        if not fields[-1].strip():
            return "the last column is empty"
        if any("\udc80" <= sign <= "\udcff" for sign in line):
            return "not UTF-8 (Latin-1 or Windows-1252? Convert the file with iconv)"
        return None
