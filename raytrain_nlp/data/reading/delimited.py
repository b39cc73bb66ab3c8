"""Reads CSV and TSV files, and finds out which character separates fields, which quotes are quotes, and which columns
occur twice.

A file whose header does not contain the separator of its suffix is read with the one that it does contain: `;`, tab,
`|` or `,`. In TSV a quote is an ordinary character, as in the files of GLUE, unless a field is quoted as pandas and
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
from raytrain_nlp.data.reading.files import Piece, open_source
from raytrain_nlp.data.reading.rows import BadRow, Row, bad_row

MOST_BYTES = 64 << 20
"""Bytes that one field may have."""
_SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|"}
"""Format -> possible separators, the usual one first."""
_SNIFFED_ROWS, _SNIFFED_SIGNS = 20, 1 << 16
_OPEN_LINES = 1_000
"""Lines over which a quoted field of a TSV file may extend."""
_MOST = 0.8
"""Share of rows that must have as many fields as the header for an unusual separator to be used."""
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.S)
_SAYS = re.compile(r"\ufeff?sep=(.)\r?\n?")
"""A first line with which spreadsheets state the separator."""


def read_separated(piece: Piece) -> Iterator[Row | BadRow]:
    """The rows of a `csv` or `tsv` piece. All values are text."""
    csv.field_size_limit(MOST_BYTES)  # the default of 128 KiB is less than long documents have
    separator, skipped = _separator(piece.path, piece.format)
    with _open_text(piece.path) as text:
        lines = itertools.islice(text, skipped, None)
        if separator == "\t" and piece.format == "tsv":
            yield from _rows_of_tsv(lines, skipped)
        else:
            yield from _rows_of_csv(lines, separator, skipped)


def repeated_columns(path: str, kind: str) -> list[str]:
    """Names that occur more than once in the header of a `csv` or `tsv` file."""
    separator, skipped = _separator(path, kind)
    with _open_text(path) as text:
        header = next(csv.reader(itertools.islice(text, skipped, None), delimiter=separator), [])
    return [name for name, count in Counter(header).items() if count > 1 and name]


@contextlib.contextmanager
def _open_text(path: str) -> Iterator[io.TextIOWrapper]:
    """The file as text. `surrogateescape` keeps an invalid byte in its row, where it is reported, instead of ending the
    file.
    """
    with (
        open_source(path) as file,
        io.TextIOWrapper(as_utf8(file)[0], encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield text


def _separator(path: str, kind: str) -> tuple[str, int]:
    """The separator of a file's fields, and the number of lines before its header (1 where a first line states it)."""
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
    best = max(usual, key=lambda separator: usual[separator], default=own)  # of equally usual ones the first
    return (best if best == own or usual[best] >= _MOST else own), 0


def _widths(lines: list[str], separator: str) -> list[int]:
    """Number of fields in each of the first rows."""
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
        if values and len(values) != len(header):  # an unclosed quote swallows the rows after it; each is reported
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
    """Read a row whose quoted field contains tabs or extends over the next lines. Lines that are read in vain stay in
    `ahead`.

    Returns:
        The fields and the number of lines, or None where the quote begins no quoted field.
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
        except csv.Error:  # the quote is still open, or begins no quoted field
            continue
        if len(cells) != width:
            return None
        for _ in range(used - 1):
            ahead.popleft()
        return cells, used
    return None


def _unquoted(cell: str, all_quoted: bool) -> str:
    """A field of TSV, without its quotes where it contains doubled quotes, or where all fields of the file are
    quoted.
    """
    inner = cell[1:-1]
    return inner.replace('""', '"') if _QUOTED.fullmatch(cell) and (all_quoted or '""' in inner) else cell


def _named(header: list[str]) -> list[str]:
    """Names of the columns, as pandas gives them: an empty name becomes `Unnamed: INDEX`, a repeated one gets a
    number.
    """
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
