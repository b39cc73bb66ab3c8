"""The prose in docstrings, without markup and code, and the keys by which copies of a text are recognized."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

_MAX_READ = 2000  # only so many characters of a docstring are read
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
    """The longest beginning of a text that has at most `max_chars` characters and ends with a whole word."""
    return text if len(text) <= max_chars else text[: max_chars + 1].rpartition(" ")[0]


def count_words(text: str) -> int:
    """Number of words with at least two letters in a row; numbers and punctuation are not counted."""
    return len(_WORD.findall(text))


def key_of(text: str) -> str:
    """The letters and digits of a text, in lower case. Copies share this key even where they differ in punctuation, so
    that no near copy is in both splits.
    """
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_held_out(text: str, percent: int) -> bool:
    """Does a text belong to the validation split? The answer depends on its key alone, so that copies belong there too.

    Args:
        percent: share of all texts that belong to the validation split, in percent.
    """
    return int(hash_of(key_of(text))[:8], 16) % 100 < percent
