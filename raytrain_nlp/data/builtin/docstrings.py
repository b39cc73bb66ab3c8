"""`builtin:docstrings`: to which library does a docstring belong? Rows {"text", "label"}, about 85 % of them for
training.

The names of the libraries are masked in all texts, so that a classifier has to read the content.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from typing import Any

from raytrain_nlp.data.builtin.prose import count_words, hash_of, is_held_out, key_of, paragraphs_in, shorten
from raytrain_nlp.data.builtin.python_sources import dense_first, docs_in, library_files
from raytrain_nlp.errors import InputError, Problem

MASK = "LIB"
LIBRARIES = {
    "numpy": "numpy", "pandas": "pandas", "torch": "torch", "scikit-learn": "sklearn",
    "transformers": "transformers", "datasets": "datasets", "mlflow": "mlflow", "ray": "ray",
}  # fmt: skip
"""Name of a distribution, which is the label -> its top-level module."""

_FORMAT = 1  # raise it with every change to the texts, so that files of older versions are not used
_MIN_ROWS, _MAX_ROWS = 60, 600  # per library; a library with fewer is left out
_ENOUGH_TEXTS = 680  # texts of a library after which reading stops: more than _MAX_ROWS, as duplicates are removed
_MAX_BYTES = 5 << 19  # bytes of source after which reading stops in any case, to limit the time
_MIN_CHARS, _MAX_CHARS, _MIN_WORDS = 40, 600, 6
_VALIDATION_PERCENT = 15

_NAMES = re.compile(
    r"""
    (?: (?<![\w-])[\w-]*(?:numpy|pandas|torch|scikit[-_ ]?learn|sklearn|mlflow|transformers|datasets)[\w-]*  # also in to_pandas, PyTorch
      | hugging[ -]?face
      | (?<![^\W_])ray(?![^\W_])\w*  # not in `array`
      | \braylet\w* | (?-i:\bRay(?=[A-Z])\w*)
      | \b(?:np|pd)\b
    )
    (?:[./]\w+)*  # the rest of a dotted name or of a path
    """,  # noqa: E501
    re.I | re.X,
)


def collect_docstrings() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits, in the order of the hashes of the texts, which mixes the labels."""
    splits = labelled_rows(
        {label: _texts_of(LIBRARIES[label]) for label in installed_libraries()},
        _MIN_ROWS,
        _MAX_ROWS,
        _VALIDATION_PERCENT,
    )
    labels = dict.fromkeys(row["label"] for row in splits["train"])
    if len(labels) < 2:
        what = f"it needs the sources of two libraries with docstrings (found: {', '.join(labels) or 'none'})"
        raise InputError(
            Problem("builtin:docstrings", what, f"Install two of {', '.join(LIBRARIES)}, or name your own files.")
        )
    return splits


def docstrings_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT, installed_libraries()]


def installed_libraries() -> dict[str, str]:
    """The version of each library that is installed, from package metadata alone."""
    versions = {}
    for distribution in LIBRARIES:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _texts_of(module: str) -> dict[str, str]:
    """The cleaned docstrings of one library without copies: key of a text -> the text."""
    texts: dict[str, str] = {}
    size = 0
    for source in dense_first(library_files(module)):
        size += len(source)
        for doc in docs_in(source):
            if text := clean(doc):
                key = key_of(text)
                texts[key] = min(text, texts.get(key, text))
        if len(texts) >= _ENOUGH_TEXTS or size >= _MAX_BYTES:
            break
    return texts


def clean(doc: str, names: re.Pattern[str] = _NAMES) -> str | None:
    """The first words of a docstring without the names of what it belongs to; None if too little is left."""
    words: list[str] = []
    for paragraph in paragraphs_in(doc):  # a paragraph is one line: a name may have been broken in two
        words += names.sub(MASK, paragraph).split()
        if sum(map(len, words)) + len(words) > _MAX_CHARS // 2:
            break
    text = shorten(" ".join(words), _MAX_CHARS)
    return text if len(text) >= _MIN_CHARS and count_words(text) >= _MIN_WORDS else None


def labelled_rows(
    texts: dict[str, dict[str, str]], least: int, most: int, validation_percent: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows {"text", "label"} of both splits: of each label at most `most` texts, in the order of their hashes. Texts of
    two labels are left out, and labels with fewer than `least` texts of their own.

    Args:
        texts: label -> what identifies a text -> the text.
    """
    owners = Counter(key for found in texts.values() for key in found)
    rows = []
    for label, found in texts.items():
        own = sorted((text for key, text in found.items() if owners[key] == 1), key=hash_of)
        if len(own) >= least:
            rows += [{"text": text, "label": label} for text in own[:most]]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in sorted(rows, key=lambda row: hash_of(row["text"])):
        splits["validation" if is_held_out(row["text"], validation_percent) else "train"].append(row)
    return splits
