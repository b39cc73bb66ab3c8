"""Rows of CSV and TSV: which sign separates, which quotes count, which columns stand there twice.

A file whose header its suffix's own separator does not divide is read with the one that does: `;`, tab, `|` or `,`. In
TSV a quote is a sign like any other, as the files of GLUE have it, except where a field is quoted as pandas and
spreadsheets quote it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator

from raytrain_nlp.data.reading.encodings import as_utf8
from raytrain_nlp.data.reading.rows import BadRow, Row, bad_row
from raytrain_nlp.data.reading.sources import Piece, open_source

MOST_BYTES = 64 << 20
"""Of a field."""
_SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|"}
"""By suffix, its own first."""
_SNIFFED_ROWS, _SNIFFED_SIGNS = 20, 1 << 16
_OPEN_LINES = 1_000
"""Lines a quoted field of a TSV may go on for."""
_MOST = 0.8
"""Share of rows with as many fields as the header, from which on another separator than a file's own is believed."""
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.S)
_SAYS = re.compile(r"\ufeff?sep=(.)\r?\n?")
"""A first line by which spreadsheets say what separates."""


def read_separated(piece: Piece) -> Iterator[Row | BadRow]:
    """The rows of a `csv` or `tsv` piece; all values are text."""
    csv.field_size_limit(MOST_BYTES)  # its default, 128 KiB, is a chapter
    separator, skipped = _separator(piece.path, piece.format)
    with _open_text(piece.path) as text:
        lines = itertools.islice(text, skipped, None)
        if separator == "\t" and piece.format == "tsv":
            yield from _rows_of_tsv(lines, skipped)
        else:
            yield from _rows_of_csv(lines, separator, skipped)


def repeated_columns(path: str, kind: str) -> list[str]:
    """Names that the header of a `csv` or `tsv` file holds more than once."""
    separator, skipped = _separator(path, kind)
    with _open_text(path) as text:
        header = next(csv.reader(itertools.islice(text, skipped, None), delimiter=separator), [])
    return [name for name, count in Counter(header).items() if count > 1 and name]


@contextlib.contextmanager
def _open_text(path: str) -> Iterator[io.TextIOWrapper]:
    """`surrogateescape` keeps a bad byte in its row, where it can be told, instead of ending the file."""
    with (
        open_source(path) as file,
        io.TextIOWrapper(as_utf8(file)[0], encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield text


def _separator(path: str, kind: str) -> tuple[str, int]:
    """What separates the fields of a file, and how many lines before its header say so."""
    with _open_text(path) as text:
        head = text.read(_SNIFFED_SIGNS)
    if said := _SAYS.match(head):
        return said[1], 1
    lines = head.splitlines(keepends=True)
    lines = lines[:-1] if len(head) == _SNIFFED_SIGNS and len(lines) > 1 else lines
    own = _SEPARATORS[kind][0]
    widths = {separator: _widths(lines, separator) for separator in _SEPARATORS[kind]}
    if widths[own][:1] > [1] and (kind == "tsv" or len(set(widths[own])) == 1):
        return own, 0
    usual = {
        separator: sum(width == found[0] for width in found) / len(found)
        for separator, found in widths.items()
        if found and found[0] > 1
    }
    best = max(usual, key=lambda separator: usual[separator], default=own)  # the first of several
    return (best if best == own or usual[best] >= _MOST else own), 0


def _widths(lines: list[str], separator: str) -> list[int]:
    """Fields of each of the first rows."""
    try:
        return [
            len(cells) for cells in itertools.islice(csv.reader(lines, delimiter=separator), _SNIFFED_ROWS) if cells
        ]
    except csv.Error:
        return []


def _rows_of_csv(lines: Iterator[str], separator: str, line: int) -> Iterator[Row | BadRow]:
    rows, before = csv.reader(lines, delimiter=separator), line
    header = _named(next(rows, []))
    line = before + rows.line_num
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield bad_row(line, f"not CSV ({error})", b"")
            line = before + rows.line_num
            continue
        if values:
            yield _row_of_cells(line, header, values)
        if values and len(values) != len(header):  # a quote left open takes further rows with it: each of them is told
            for inside in range(line + 1, before + rows.line_num):
                yield bad_row(inside, f"inside the row of line {line + 1}, by a quote left open there", b"")
        line = before + rows.line_num


def _rows_of_tsv(lines: Iterator[str], line: int) -> Iterator[Row | BadRow]:
    first = next(lines, "").rstrip("\r\n").split("\t")
    quoted = all(_QUOTED.fullmatch(cell) for cell in first)
    header = _named([_unquoted(cell, quoted) for cell in first])
    ahead: deque[str] = deque()
    while text := ahead.popleft() if ahead else next(lines, ""):
        line, cells, used = line + 1, text.rstrip("\r\n").split("\t"), 1
        if len(cells) == len(header):
            cells = [_unquoted(cell, quoted) for cell in cells]
        elif '"' in text and (whole := _open_quote(text, lines, ahead, len(header))):
            cells, used = whole
        if cells != [""] or len(header) == 1 and quoted:
            yield _row_of_cells(line, header, cells)
        line += used - 1


def _open_quote(text: str, lines: Iterator[str], ahead: deque[str], width: int) -> tuple[list[str], int] | None:
    """The fields of a row in which a quoted one holds tabs or goes on in the next lines, and how many lines it takes;
    None where it is none.
    """
    for used in range(1, _OPEN_LINES):
        if used > 1:
            if len(ahead) < used - 1 and (more := next(lines, "")):
                ahead.append(more)
            if len(ahead) < used - 1 or len(text) > MOST_BYTES:
                return None
            text += ahead[used - 2]
            if '"' not in ahead[used - 2]:
                continue
        try:
            cells = next(csv.reader([text], delimiter="\t", strict=True))
        except csv.Error:  # the quote is open yet, or is none
            continue
        if len(cells) != width:
            return None
        for _ in range(used - 1):
            ahead.popleft()
        return cells, used
    return None


def _unquoted(cell: str, all_quoted: bool) -> str:
    """A field of TSV without the quotes that stand for none: it holds doubled ones, or all fields of the file are
    quoted.
    """
    inner = cell[1:-1]
    return inner.replace('""', '"') if _QUOTED.fullmatch(cell) and (all_quoted or '""' in inner) else cell


def _named(header: list[str]) -> list[str]:
    """Columns as pandas names them: one without a name by its place, one of a name that is taken with a number."""
    names: list[str] = []
    for place, name in enumerate(header):
        name = name or f"Unnamed: {place}"
        names.append(
            next(
                free
                for free in itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
                if free not in names
            )
        )
    return names


def _row_of_cells(line: int, header: list[str], values: list[str]) -> Row | BadRow:
    shown = ",".join(values).encode("utf-8", "surrogateescape")
    if len(values) != len(header):
        return bad_row(line, f"{len(values)} fields where the header has {len(header)}", shown)
    for value in values:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            if "\udc80" <= value[error.start] <= "\udcff":
                return bad_row(
                    line,
                    f"not UTF-8 (0x{ord(value[error.start]) - 0xDC00:02x}: Latin-1 or Windows-1252? Convert the file "
                    f"with iconv)",
                    shown,
                )
    return Row(line, dict(zip(header, values, strict=True)))
