"""`builtin:docstrings/summaries`: the first sentence of a docstring is the summary of the rest. Rows {"text",
"summary"}.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.data.builtin.docstrings import LIBRARIES, installed_libraries
from raytrain_nlp.data.builtin.prose import count_words, hash_of, is_held_out, key_of, paragraphs_in, shorten
from raytrain_nlp.data.builtin.python_sources import dense_only, docs_in, library_files, standard_library_files

_FORMAT = 1  # raise it with every change to the rows
_MAX_BYTES, _DENSE_BYTES = 1 << 20, 1500  # source read of each library, and per docstring at most; limits the time
_MIN_SUMMARY, _MAX_SUMMARY, _MIN_WORDS = 15, 200, 3
_MIN_CHARS, _MAX_CHARS = 80, 1000
_VALIDATION_PERCENT = 10
_SENTENCE = re.compile(r"(.+?[.!?])(?: +(?=[A-Z])|$)(.*)")


def collect_summaries() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits, sorted by the hashes of their texts. No text and no summary occurs twice."""
    rows = sorted(
        (row for doc in _docs() if (row := _row_of(doc))), key=lambda row: (hash_of(row["text"]), row["summary"])
    )
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    seen: set[str] = set()
    for row in rows:
        keys = {key_of(row["text"]), key_of(row["summary"])}
        if not keys & seen:  # methods of sibling classes often differ only in a name
            seen |= keys
            splits["validation" if is_held_out(row["text"], _VALIDATION_PERCENT) else "train"].append(row)
    return splits


def summaries_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT, platform.python_version(), installed_libraries()]


def _docs() -> Iterator[str]:
    for files in (standard_library_files(), *(library_files(LIBRARIES[name]) for name in installed_libraries())):
        size = 0
        for source in dense_only(files, _DENSE_BYTES):
            size += len(source)
            yield from docs_in(source, private=True)
            if size >= _MAX_BYTES:
                break


def _row_of(doc: str) -> dict[str, str] | None:
    """The first sentence as summary, and the text after it; None where either is too short to learn from."""
    first, *others = [paragraph for paragraph in paragraphs_in(doc) if paragraph] or [""]
    sentence = _SENTENCE.match(first)
    summary, rest = sentence.groups() if sentence else (first, "")
    text = shorten(" ".join([rest, *others]).strip(), _MAX_CHARS)
    if not _MIN_SUMMARY <= len(summary) <= _MAX_SUMMARY or count_words(summary) < _MIN_WORDS or len(text) < _MIN_CHARS:
        return None
    return {"text": text, "summary": summary}
