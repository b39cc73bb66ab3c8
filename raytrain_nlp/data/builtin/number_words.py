"""`builtin:numbers`: lists of numbers in English words and in German words, made by rules. Rows {"translation": {"en",
"de"}}.

A small model learns this translation from scratch in minutes, but cannot learn it by heart: 34 is `thirty-four` and
`vierunddreißig`, so words change places and are joined. A row is a list, because a German number below a million is one
word and BLEU counts sequences of four words; the lists are short, because word order is learned from short rows.
Numbers with one to four digits are equally frequent. No number of three or more digits is in both splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raytrain_nlp.data.builtin.prose import is_held_out

LARGEST = 99_999_999

_FORMAT = 3  # raise it with every change to the rows
_TRAIN, _VALIDATION = 12_000, 400
_SHORTEST, _LONGEST, _DIGITS = 1, 4, 4
_HELD_OUT_PERCENT = 10
_ENGLISH = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # noqa: E501
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_GERMAN = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn".split()  # noqa: E501
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def number_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits; no list occurs twice."""
    draw = random.Random(0).random  # the only method whose sequence Python guarantees between versions
    seen: set[tuple[int, ...]] = set()
    return {"validation": _draw_rows(draw, _VALIDATION, True, seen), "train": _draw_rows(draw, _TRAIN, False, seen)}


def _draw_rows(
    draw: Callable[[], float], count: int, held_out: bool, seen: set[tuple[int, ...]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        length = _SHORTEST + int(draw() * (_LONGEST - _SHORTEST + 1))
        numbers = tuple(_draw_number(draw, held_out) for _ in range(length))
        if numbers not in seen:
            seen.add(numbers)
            rows.append(
                {"translation": {"en": ", ".join(map(english, numbers)), "de": ", ".join(map(german, numbers))}}
            )
    return rows


def _draw_number(draw: Callable[[], float], held_out: bool) -> int:
    """Draws the number of digits first, so that large numbers are not more frequent than small ones."""
    least = 10 ** int(draw() * _DIGITS)
    while True:
        number = int(draw() * 10) if least == 1 else least + int(draw() * 9 * least)
        if least < 100 or is_held_out(str(number), _HELD_OUT_PERCENT) == held_out:
            return number


def numbers_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT]


def english(number: int) -> str:
    """A number from 0 to LARGEST in British English: `one thousand and one`, `three hundred and twelve`."""
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            count, rest = divmod(number, size)
            link = " and " if rest < 100 else " "
            return f"{english(count)} {name}" + (link + english(rest) if rest else "")
    if number < 20:
        return _ENGLISH[number]
    tens, ones = divmod(number, 10)
    return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[ones]}" if ones else "")


def german(number: int) -> str:
    """A number from 0 to LARGEST in German: `eintausendeins`, `zwei Millionen dreihundertzwölf`."""
    millions, rest = divmod(number, 1_000_000)
    if not millions:
        return _german_word(number)
    name = "eine Million" if millions == 1 else f"{_german_word(millions)} Millionen"
    return f"{name} {_german_word(rest)}" if rest else name


def _german_word(number: int, one: str = "eins") -> str:
    """A number below a million, as one word.

    Args:
        one: the word for a final 1: `eins` at the end of the number, `ein` before another part.
    """
    for size, name in ((1000, "tausend"), (100, "hundert")):
        if number >= size:
            count, rest = divmod(number, size)
            return _german_word(count, "ein") + name + (_german_word(rest, one) if rest else "")
    if number < 20:
        return one if number == 1 else _GERMAN[number]
    tens, ones = divmod(number, 10)
    return (f"{_german_word(ones, 'ein')}und" if ones else "") + _GERMAN_TENS[tens - 2]
