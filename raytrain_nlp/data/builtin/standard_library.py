"""`builtin:docstrings/modules`: which part of Python's standard library does a docstring belong to? Rows {"text",
"label"}, about 80 % for training.

A model that has read `builtin:python-docs`, where these docstrings are without labels, can be taught the labels with
little. The names of the parts are masked in all texts.
"""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from typing import Any

from raytrain_nlp.data.builtin.docstrings import clean, labelled_rows
from raytrain_nlp.data.builtin.prose import key_of
from raytrain_nlp.data.builtin.python_sources import dense_only, docs_in, standard_library_files
from raytrain_nlp.errors import InputError, Problem

_FORMAT = 1  # raise it with every change to the rows
_PARTS = 8  # those with most texts
_MIN_ROWS, _MAX_ROWS = 40, 240
_VALIDATION_PERCENT = 20


def collect_modules() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits, in the order of the hashes of the texts; of the parts with most texts."""
    docs = {part: docs for part, docs in _docs_of_parts().items() if len(docs) >= _MIN_ROWS}
    names = re.compile(rf"(?<![\w-])[\w-]*(?:{'|'.join(map(re.escape, docs)) or '$^'})[\w-]*(?:[./]\w+)*", re.I)
    texts = {part: {key_of(text): text for doc in found if (text := clean(doc, names))} for part, found in docs.items()}
    largest = sorted(texts, key=lambda part: (-len(texts[part]), part))[:_PARTS]
    splits = labelled_rows({part: texts[part] for part in sorted(largest)}, _MIN_ROWS, _MAX_ROWS, _VALIDATION_PERCENT)
    if len({row["label"] for row in splits["train"]}) < 2:
        what = "it needs the sources of Python's standard library, which are not here"
        raise InputError(Problem("builtin:docstrings/modules", what, "Name your own files."))
    return splits


def modules_origin() -> list[Any]:
    """What decides the rows."""
    return [_FORMAT, platform.python_implementation(), platform.python_version()]


def _docs_of_parts() -> dict[str, list[str]]:
    """Top-level package or module -> its docstrings."""
    root = sysconfig.get_path("stdlib")
    files: dict[str, list[str]] = {}
    for path in standard_library_files():
        files.setdefault(_part_of(os.path.relpath(path, root)), []).append(path)
    return {
        part: [doc for source in dense_only(files[part]) for doc in docs_in(source, private=True)]
        for part in sorted(files)
    }


def _part_of(name: str) -> str:
    """`xml` of xml/dom/minidom.py, `decimal` of _pydecimal.py."""
    return name.replace(os.sep, "/").partition("/")[0].removesuffix(".py").removeprefix("_py").lstrip("_")
