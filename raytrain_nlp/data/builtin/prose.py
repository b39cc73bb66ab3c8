"""Prose: the words of a docstring without what is not language, and what makes two texts copies of each other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

_MAX_READ = 2000  # characters of a docstring to look at
_HEADING = re.compile(r"^[^\n]*\n[ \t]*([-=~^*#])\1{2,}[ \t]*$", re.M)
_SECTION = re.compile(
    r"^[ \t]*(Args?|Arguments|Parameters?|Returns?|Raises|Yields|Attributes|Notes?):{0,2}[ \t]*$", re.M | re.I
)
_CODE = re.compile(r"^[ \t]*(Examples?|See also|References)\b[^\n]{0,10}$", re.M | re.I)
_DIRECTIVE = re.compile(r"^[ \t]*(\.\. |>>> |\.\.\. |@|#).*$", re.M)
_SIGNATURE = re.compile(r"[\w.]+\([^\n]*\)[ \t]*(->[^\n]*)?")
_LEGAL = re.compile(r"copyright|licen[cs]ed? |SPDX|warranty", re.I)
_MARKUP = re.compile(r":(?:\w+:)?\w+:(?=`)|\{\w*\}|https?://\S+|[`*]+|<[/\w]+>|\\[A-Za-z]+|~(?=\w)|[-=~_]{3,}")
_WORD = re.compile(r"(?<!\S)\S*?[A-Za-z]{2}\S*")


def paragraphs_in(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring, each on one line, without markup, headings, signatures, examples and licences."""
    doc = _CODE.split(doc[:_MAX_READ], maxsplit=1)[0]
    for noise in (_HEADING, _SECTION, _DIRECTIVE):
        doc = noise.sub("", doc)
    for paragraph in re.split(r"\n\s*\n", doc):
        if not _SIGNATURE.fullmatch(paragraph.strip()) and not _LEGAL.search(paragraph):
            yield " ".join(_MARKUP.sub(" ", paragraph).split())


def shorten(text: str, max_chars: int) -> str:
    """The first words of a text."""
    return text if len(text) <= max_chars else text[: max_chars + 1].rpartition(" ")[0]


def count_words(text: str) -> int:
    """Words with letters in them: numbers and signs are none."""
    return len(_WORD.findall(text))


def key_of(text: str) -> str:
    """What copies of a text share: its letters and digits. Stricter than equal text, so that no near copy is on both
    sides of a split.
    """
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_held_out(text: str, percent: int) -> bool:
    """Does a text belong to the validation split? Its copies do too, wherever and whenever they are found."""
    return int(hash_of(key_of(text))[:8], 16) % 100 < percent
