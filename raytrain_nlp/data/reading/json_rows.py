"""Reads rows from JSON: one object on each line, objects of several lines, an array, or an object whose `data` is the
list of rows. An article of SQuAD becomes a row for each of its questions.

The content of a file decides which of these it is, not its suffix; `datasets.load_dataset("json")` reads the same rows.
An object that contains a key twice is a bad row, because parsers would silently keep the last value.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from raytrain_nlp.data.reading.encodings import not_utf8
from raytrain_nlp.data.reading.rows import BadRow, Blank, Row, bad_row
from raytrain_nlp.data.reading.squad import questions_of

_NEXT_OBJECT = re.compile(r"^\{", re.M)
_BYTES = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, in a text that was decoded with `surrogateescape`."""
_BETWEEN = re.compile(r"[\s,]*")


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(f"the key '{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def row_of_line(number: int, line: bytes) -> Row | BadRow | Blank:
    """The row on a line of JSON Lines."""
    if not line.strip():
        return Blank(number)
    try:
        return _row(number, _DECODER.decode(line.decode("utf-8")), line)
    except UnicodeDecodeError as error:
        return bad_row(number, not_utf8(error), line)
    except (ValueError, RecursionError) as error:
        return bad_row(number, str(error) if isinstance(error, _TwiceError) else f"not JSON ({error})", line)


def rows_of_whole(content: bytes) -> Iterator[Row | BadRow]:
    """The rows of a file that is an array, or consists of objects of several lines."""
    # `surrogateescape`: an invalid byte makes its object a bad row, and the rest of the file is read
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    yield from _rows_of_array(text) if text.lstrip().startswith("[") else _rows_of_objects(text)


def _rows_of_array(text: str) -> Iterator[Row | BadRow]:
    try:
        array = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield bad_row(0, f"the whole file is not JSON ({error})", _bytes(text))
        return
    with contextlib.suppress(_TwiceError):
        if not _BYTES.search(text):
            yield from rows_of_list(_DECODER.decode(text))
            return
    texts = _are_texts(array)
    yield from _questions_apart(  # parse each element by itself, so that only bad ones are lost
        _row_of_text(number, one, texts) for number, one in enumerate(_elements(text))
    )


def _elements(text: str) -> Iterator[str]:
    """The text of each element of a JSON array."""
    plain, place = json.JSONDecoder(), text.index("[") + 1
    while text[place := _behind_space(text, place)] != "]":
        _, end = plain.raw_decode(text, place)
        yield text[place:end]
        place = end


def _behind_space(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    assert found is not None, "it matches nothing, too"
    return found.end()


def rows_of_list(array: list[Any]) -> Iterator[Row | BadRow]:
    """A row for each object. Texts, where the list consists of them, are rows with a column `text`, as in
    `datasets`.
    """
    texts = _are_texts(array)
    yield from _questions_apart(_row(number, one, _bytes(str(one)[:500]), texts) for number, one in enumerate(array))


def _questions_apart(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows, where each article of SQuAD is replaced by rows for its questions. Rows are numbered anew."""
    number = 0
    for row in rows:
        questions = questions_of(row.values) if isinstance(row, Row) else None
        for found in [row] if questions is None else [Row(number, values) for values in questions]:
            yield replace(found, line=number)
            number += 1


def _are_texts(array: list[Any]) -> bool:
    return bool(array) and all(isinstance(one, str) for one in itertools.islice(array, 100))


def _row_of_text(number: int, text: str, texts: bool) -> Row | BadRow:
    if found := _BYTES.search(text):
        return bad_row(
            number,
            f"not UTF-8 (0x{ord(found[0]) - 0xDC00:02x}: Latin-1 or Windows-1252? Convert the file with iconv)",
            _bytes(text),
        )
    try:
        return _row(number, _DECODER.decode(text), _bytes(text), texts)
    except _TwiceError as error:
        return bad_row(number, str(error), _bytes(text))


def _rows_of_objects(text: str) -> Iterator[Row | BadRow]:
    """Objects one after another. After a damaged one, reading continues at the next line that begins an object."""
    plain = json.JSONDecoder()
    place, line, counted = _behind_space(text, 0), 0, 0
    first = place
    while place < len(text):
        line, counted = line + text.count("\n", counted, place), place
        try:
            values, end = plain.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield bad_row(line, f"not JSON ({error})", _bytes(text[place : place + 500]))
            behind = text.find("\n", place) + 1
            found = _NEXT_OBJECT.search(text, behind) if behind else None
            place = found.start() if found else len(text)
            continue
        behind = _behind_space(text, end)
        if place == first and behind == len(text) and is_table(values):
            yield from _rows_of_array(json.dumps(values["data"]))
            return
        yield _row_of_text(line, text[place:end], texts=False)
        place = behind


def is_table(values: Any) -> bool:
    """Is this a table, an object whose `data` is a list of objects? Only asked of an object that is the whole file."""
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, list) and bool(data) and all(isinstance(one, dict) for one in data)


def _row(number: int, values: Any, text: bytes, texts: bool = False) -> Row | BadRow:
    if texts and isinstance(values, str):
        return Row(number, {"text": values})
    return (
        Row(number, values)
        if isinstance(values, dict)
        else bad_row(number, f"not a JSON object but {type(values).__name__}", text)
    )


def _bytes(text: str) -> bytes:
    return text[:500].encode("utf-8", "surrogateescape" if _BYTES.search(text[:500]) else "replace")
