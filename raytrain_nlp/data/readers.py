"""From a piece of a file to its rows. What cannot be parsed becomes a `BadRow` with its line, never an exception."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fsspec.spec import AbstractBufferedFile

from raytrain_nlp.data.sources import Piece, open_source, told_if_damaged

MAX_LINE_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """One parsed row and its place in the piece: lines and row numbers start at 0."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that goes to quarantine."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Blank:
    """A line without a row; it matters for the numbers of the lines behind it only."""

    line: int


def read_rows(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    """The rows of a piece in order. Raises `InputError` where the file itself is damaged."""
    with told_if_damaged(piece.path, piece.format):
        yield from _READERS[piece.format](piece)


def _read_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that start inside the piece: a line belongs to the piece its first byte is in."""
    with _buffered(open_source(piece.path)) as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline(MAX_LINE_BYTES)
        number = 0
        while piece.end is None or file.tell() < piece.end:
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            if number == 0 and piece.start == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line.rstrip(b"\r\n")
            number += 1


def _buffered(file: Any) -> Any:
    """A file whose `readline` takes a limit, which those of fsspec's remote file systems do not."""
    return io.BufferedReader(file, _BUFFER_BYTES) if isinstance(file, AbstractBufferedFile) else file


def _read_jsonl(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    for number, line in _read_lines(piece):
        yield _row_of_json(number, line) if line.strip() else Blank(number)


def _row_of_json(number: int, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _bad(number, f"not UTF-8 at byte {error.start}", line)
    except (ValueError, RecursionError) as error:
        return _bad(number, f"not JSON ({error})", line)
    if not isinstance(values, dict):
        return _bad(number, f"not a JSON object but {type(values).__name__}", line)
    return Row(number, values)


def _read_json(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    """`.json` holds JSON Lines or one array of objects."""
    with open_source(piece.path) as file:
        first = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first != b"[":
        yield from _read_jsonl(piece)
        return
    with open_source(piece.path) as file:
        content = file.read()
    try:
        array = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield _bad(0, f"the whole file is not JSON ({error})", content)
        return
    for number, values in enumerate(array):
        yield Row(number, values) if isinstance(values, dict) else _bad(number, "not a JSON object", str(values).encode())


def _read_text(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    for number, line in _read_lines(piece):
        if not line.strip():
            yield Blank(number)
            continue
        try:
            yield Row(number, {"text": line.decode("utf-8")})
        except UnicodeDecodeError as error:
            yield _bad(number, f"not UTF-8 at byte {error.start}", line)


def _separated(delimiter: str) -> Callable[[Piece], Iterator[Row | BadRow]]:
    def read(piece: Piece) -> Iterator[Row | BadRow]:
        csv.field_size_limit(MAX_LINE_BYTES)  # its default, 128 KiB, is a chapter
        with open_source(piece.path) as file:
            # surrogateescape keeps a bad byte in its row, where it can be told, instead of ending the file
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
            header = next(rows, [])
            line = rows.line_num
            while True:
                try:
                    values = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield _bad(line, f"not CSV ({error})", b"")
                    line = rows.line_num
                    continue
                if values:
                    yield _row_of_cells(line, header, values)
                if values and len(values) != len(header):  # a quote left open takes further rows with it: each of them is told
                    for inside in range(line + 1, rows.line_num):
                        yield _bad(inside, f"inside the row of line {line + 1}, by a quote left open there", b"")
                line = rows.line_num

    return read


def _row_of_cells(line: int, header: list[str], values: list[str]) -> Row | BadRow:
    shown = ",".join(values).encode("utf-8", "surrogateescape")
    if len(values) != len(header):
        return _bad(line, f"{len(values)} fields where the header has {len(header)}", shown)
    if any("\udc80" <= sign <= "\udcff" for value in values for sign in value):
        return _bad(line, "not UTF-8", shown)
    return Row(line, dict(zip(header, values, strict=True)))


def _read_parquet(piece: Piece) -> Iterator[Row | BadRow]:
    import pyarrow.parquet as parquet

    with open_source(piece.path) as handle:
        file = parquet.ParquetFile(handle)
        yield from _rows_of_batches(file.iter_batches(batch_size=1024, row_groups=list(range(piece.start, piece.end or 0))))


def _read_arrow(piece: Piece) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    with open_source(piece.path) as handle:
        is_file = handle.read(6) == b"ARROW1"
        handle.seek(0)
        if is_file:
            reader = pa.ipc.open_file(handle)
            yield from _rows_of_batches(reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from _rows_of_batches(pa.ipc.open_stream(handle))


def _rows_of_batches(batches: Any) -> Iterator[Row | BadRow]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # one bad string must not cost its whole batch
            rows = [_decoded(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for values in rows:
            yield Row(number, values) if values is not None else _bad(number, "not UTF-8", b"")
            number += 1


def _decoded(batch: Any) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None


def _bad(line: int, reason: str, text: bytes) -> BadRow:
    return BadRow(line, reason, text[:500].decode("utf-8", "backslashreplace"))


_READERS: dict[str, Callable[[Piece], Iterator[Row | BadRow | Blank]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "text": _read_text,
    "csv": _separated(","),
    "tsv": _separated("\t"),
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
