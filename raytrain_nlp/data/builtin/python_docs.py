"""`builtin:python-docs`: Python's own documentation, for language models. Rows {"text"}.

The texts are the topics that `help()` prints, and the docstrings of the standard library. Topics share whole sections,
so copies are removed by paragraph: no paragraph of 40 characters or more is in both splits.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator
from typing import Any

from raytrain_nlp.data.builtin.prose import hash_of, is_held_out, key_of
from raytrain_nlp.data.builtin.python_sources import dense_only, docs_in, standard_library_files

_FORMAT = 1  # raise it with every change to the rows
_MIN_CHARS, _MAX_CHARS = 300, 2000  # of a document; paragraphs are not cut, so some documents are longer
_MIN_COPY = 40  # shorter paragraphs, such as `For example:`, may occur more than once
_VALIDATION_PERCENT = 7
_UNDERLINE = re.compile(r"^[ \t]*([*=~^#+-])\1{2,}[ \t]*$", re.M)


def collect_python_docs() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits, sorted by the hashes of their texts."""
    seen: set[str] = set()
    texts = {document for text in _texts() for document in _documents_of(_new_paragraphs(text, seen))}
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for text in sorted(texts, key=hash_of):
        splits["validation" if is_held_out(text, _VALIDATION_PERCENT) else "train"].append({"text": text})
    return splits


def python_docs_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT, platform.python_implementation(), platform.python_version()]


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics  # imported here: half a megabyte that is needed once

    for name in sorted(topics):
        yield topics[name]
    for source in dense_only(standard_library_files()):
        yield "\n\n".join(docs_in(source, private=True))


def _new_paragraphs(text: str, seen: set[str]) -> Iterator[str]:
    """The paragraphs of a text that are not in `seen`, which is updated. Their lines are unchanged, except for trailing
    blanks and the underlines of headings.
    """
    lines = _UNDERLINE.sub("", text.expandtabs()).splitlines()
    for paragraph in re.split(r"\n{2,}", "\n".join(line.rstrip() for line in lines).strip("\n")):
        key = key_of(paragraph)
        if len(paragraph) >= _MIN_COPY:
            if key in seen:
                continue
            seen.add(key)
        if key:
            yield paragraph


def _documents_of(paragraphs: Iterable[str]) -> list[str]:
    """Documents of neighbouring paragraphs. A remainder that is too short is added to the document before it."""
    documents: list[list[str]] = [[]]
    size = 0
    for paragraph in paragraphs:
        if size + len(paragraph) > _MAX_CHARS and size >= _MIN_CHARS:
            documents.append([])
            size = 0
        documents[-1].append(paragraph)
        size += len(paragraph) + 2
    if size < _MIN_CHARS and len(documents) > 1:
        documents[-2:] = [documents[-2] + documents[-1]]
    return [text for parts in documents if len(text := "\n\n".join(parts)) >= _MIN_CHARS]
