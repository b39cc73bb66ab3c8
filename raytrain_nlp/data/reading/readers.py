"""Reads the rows of a piece of a file. A row that cannot be parsed becomes a `BadRow` with its line; it raises
nothing.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fsspec.spec import AbstractBufferedFile

from raytrain_nlp.data.reading.compressed import bounded_batches
from raytrain_nlp.data.reading.conll import read_conll
from raytrain_nlp.data.reading.delimited import MOST_BYTES, read_separated
from raytrain_nlp.data.reading.encodings import as_utf8, is_json_lines, not_utf8
from raytrain_nlp.data.reading.files import Piece, damage_reported, open_source, saved_parts
from raytrain_nlp.data.reading.json_rows import is_table, row_of_line, rows_of_list, rows_of_whole
from raytrain_nlp.data.reading.rows import BadRow, Blank, Row, bad_row
from raytrain_nlp.errors import InputError, Problem

__all__ = ["BadRow", "Blank", "Row", "read_rows"]
MAX_LINE_BYTES = MOST_BYTES
_BUFFER_BYTES = 1 << 20
_SAVED_ROWS = 1_024
"""Number of rows of a saved dataset that are gathered by their indices at a time."""


def read_rows(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    """The rows of a piece in order. Raises `InputError` where the file as a whole is damaged."""
    with damage_reported(piece.path, piece.format):
        yield from _READERS[piece.format](piece)


def _read_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the lines of a piece. A line belongs to the piece that contains its first byte."""
    with _buffered(open_source(piece.path)) as source:
        file, end = source, piece.end
        if piece.start:
            file.seek(piece.start - 1)
            file.readline(MAX_LINE_BYTES)
        else:
            file, recoded = as_utf8(source)
            end = None if recoded else end  # positions in the converted text are not those in the file
        number = 0
        while end is None or file.tell() < end:
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            if number == 0 and piece.start == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line.rstrip(b"\r\n")
            number += 1


def _buffered(file: Any) -> Any:
    """The file with a `readline` that takes a limit; fsspec's files of remote file systems have none."""
    return io.BufferedReader(file, _BUFFER_BYTES) if isinstance(file, AbstractBufferedFile) else file


def _read_jsonl(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    if piece.start == 0 and not _is_lines(piece.path):
        yield from rows_of_whole(_content(piece.path))
        return
    for number, line in _read_lines(piece):
        yield row_of_line(number, line)


def _read_json(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    """Read a line at a time, as long as each holds a whole object; from the first one that does not, read objects of
    several lines.
    """
    if not _is_lines(piece.path):
        yield from rows_of_whole(_content(piece.path))
        return
    alone: Row | None = None
    for number, line in _read_lines(piece):
        row = row_of_line(number, line)
        if isinstance(row, Row) and is_table(row.values) and not number:
            alone = row
            continue
        if alone and not isinstance(row, Blank):
            yield alone
            alone = None
        if isinstance(row, BadRow) and row.reason.startswith("not JSON") and line.lstrip().startswith(b"{"):
            rest = _content(piece.path).split(b"\n", number)[number]
            yield from (replace(found, line=found.line + number) for found in rows_of_whole(rest))
            return
        yield row
    if alone:
        yield from rows_of_list(alone.values["data"])


def _is_lines(path: str) -> bool:
    with open_source(path) as file:
        return is_json_lines(as_utf8(file)[0].read(1 << 16))


def _content(path: str) -> bytes:
    with open_source(path) as file:
        return as_utf8(file)[0].read()


def _read_text(piece: Piece) -> Iterator[Row | BadRow | Blank]:
    for number, line in _read_lines(piece):
        if not line.strip():
            yield Blank(number)
            continue
        try:
            yield Row(number, {"text": line.decode("utf-8")})
        except UnicodeDecodeError as error:
            yield bad_row(number, not_utf8(error), line)


def _read_parquet(piece: Piece) -> Iterator[Row | BadRow]:
    import pyarrow.parquet as parquet

    with open_source(piece.path) as handle:
        file = parquet.ParquetFile(handle)
        _check_names(file.schema_arrow.names, piece.path)
        batches = file.iter_batches(batch_size=1024, row_groups=list(range(piece.start, piece.end or 0)))
        yield from _rows_of_batches(bounded_batches(batches, handle, piece.path))


def _read_arrow(piece: Piece) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    with open_source(piece.path) as handle:
        is_file = handle.read(6) == b"ARROW1"
        handle.seek(0)
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(handle)
        _check_names(reader.schema.names, piece.path)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        yield from _rows_of_batches(bounded_batches(batches, handle, piece.path))


def _read_saved(piece: Piece) -> Iterator[Row | BadRow]:
    """The rows of a dataset that was saved with indices, in the order of the indices."""
    import pyarrow as pa

    rows, indices = (pa.concat_tables([_table(path) for path in paths]) for paths in saved_parts(piece.path))
    _check_names(rows.column_names, piece.path)
    order = indices.column(0)
    for start in range(0, len(order), _SAVED_ROWS):
        yield from (
            replace(row, line=row.line + start)
            for row in _rows_of_batches(rows.take(order.slice(start, _SAVED_ROWS)).combine_chunks().to_batches())
        )


def _table(path: str) -> Any:
    import pyarrow as pa

    # a table of a mapped file stays valid after the file is closed
    with open_source(path) if "://" in path else pa.memory_map(path) as handle:
        is_file = handle.read(6) == b"ARROW1"
        handle.seek(0)
        return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(handle).read_all()


def _check_names(names: list[str], path: str) -> None:
    """Raise `InputError` where two columns have the same name, since a row can hold only one of them."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(Problem(path, f"has the column '{twice[0]}' more than once", "Rename or remove one of them."))


def _rows_of_batches(batches: Any) -> Iterator[Row | BadRow]:
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # an invalid string must not make the other rows of its batch bad
            rows = [_decoded(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for values in rows:
            yield Row(number, values) if values is not None else bad_row(number, "not UTF-8", b"")
            number += 1


def _decoded(batch: Any) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None


_READERS: dict[str, Callable[[Piece], Iterator[Row | BadRow | Blank]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "text": _read_text,
    "csv": read_separated,
    "tsv": read_separated,
    "conll": read_conll,
    "conllu": read_conll,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "saved": _read_saved,
}
