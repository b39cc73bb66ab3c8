"""The words of a raw text, and where they stand in it.

A sentence of training data comes as words, with punctuation apart. Raw text is divided likewise, whatever the
tokenizer: at white space, then before and behind punctuation. What stands between two letters or digits stays (3.5,
Jean-Luc, o'clock, a@b.c), and so does the dot behind initials (J., U.S.); signs of Chinese and Japanese, which are
written without spaces, are words of their own.
"""

from __future__ import annotations

import re
import unicodedata

_CHUNK = re.compile(r"\S+")
_JOINS = set("-'’.,:@&/_·")
_INITIALS = re.compile(r"\w(?:\.\w)*")
_SCRIPTS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Kana, and ideographs."""


def split_words(text: str) -> list[tuple[int, int]]:
    """First character of each word, and the one behind its last."""
    return [word for chunk in _CHUNK.finditer(text) for word in _words_of(text, *chunk.span())]


def _words_of(text: str, start: int, end: int) -> list[tuple[int, int]]:
    words: list[tuple[int, int]] = []
    opened: int | None = None
    for place in range(start, end):
        inside = _is_letter(text[place]) or (
            opened is not None
            and text[place] in _JOINS
            and place + 1 < end
            and _is_letter(text[place + 1])
            and _is_letter(text[place - 1])
        )
        if inside and opened is None:
            opened = place
        if not inside:
            if opened is not None:
                whole = text[place] == "." and text[opened].isupper() and _INITIALS.fullmatch(text, opened, place)
                words.append((opened, place + 1 if whole else place))
                opened = None
                if whole:
                    continue
            words.append((place, place + 1))
    if opened is not None:
        words.append((opened, end))
    return words


def _is_letter(sign: str) -> bool:
    """Is it part of a longer word: a letter, a mark on one, a digit or an invisible sign?"""
    code = ord(sign)
    return unicodedata.category(sign)[0] not in "PSZ" and not any(low <= code <= high for low, high in _SCRIPTS)
