"""Compressed files of a data set, read no further than rows can go: a few megabytes may stand for terabytes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from raytrain_nlp.errors import InputError, Problem

_TIMES = 200
"""Rows of text are a tenth to a fiftieth as large when they are compressed; of one byte again and again deflate makes a
thousandth."""
_TIMES_OF_COLUMNS = 1_000
"""A column that repeats a long text (a prompt) holds it once."""
_ALWAYS = 256 << 20
"""Bytes that any file may expand to."""
_BUFFER_BYTES = 1 << 20


def bounded(file: Any, path: str, size: int) -> io.BufferedReader:
    """The decompressed file, of which reading more than rows can be raises `InputError`.

    Args:
        size: bytes of the compressed file.
    """
    return io.BufferedReader(_Bounded(file, path, max(_ALWAYS, _TIMES * size)), _BUFFER_BYTES)


def bounded_batches(batches: Iterable[Any], file: Any, path: str) -> Iterator[Any]:
    """The Arrow batches of a columnar file, of which more than rows can be raises `InputError`.

    Args:
        file: the file itself, open.
    """
    place = file.tell()  # of a stream the reader goes on from there
    file.seek(0, os.SEEK_END)
    most, size = max(_ALWAYS, _TIMES_OF_COLUMNS * file.tell()), 0
    file.seek(place)
    for batch in batches:
        if (size := size + sum(map(_bytes, batch.columns))) > most:
            raise _too_far(path, most, "If they are rows, give them as JSON Lines.")
        yield batch


def _bytes(column: Any) -> int:
    """Of a column's values; a dictionary holds each of them once."""
    values = getattr(column, "dictionary", None)
    return column.nbytes if values is None else len(column) * values.nbytes // max(len(values), 1)


def _too_far(path: str, most: int, todo: str) -> InputError:
    return InputError(Problem(path, f"expands to more than {most / 1e6:,.0f} MB, as no rows of text do", todo))


class _Bounded(io.RawIOBase):
    """A file that ends with an error behind `most` bytes."""

    def __init__(self, file: Any, path: str, most: int):
        self._file, self._path, self._most, self._place = file, path, most, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        if self._place > self._most:
            raise _too_far(self._path, self._most, "If they are rows, give the file without .gz.")
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = self._file.seek(offset, whence)
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._file.close()
        super().close()
