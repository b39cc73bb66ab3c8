"""`builtin:numbers`: English number words to German ones, made by rule. Rows {"translation": {"en", "de"}}.

A translation that a small model from scratch learns in minutes and cannot learn by heart: 34 is `thirty-four` and
`vierunddreißig`, so words change places and grow together. Small and large numbers are equally frequent.
"""

from __future__ import annotations

import random
from typing import Any

from raytrain_nlp.data.prose import hash_of

LARGEST = 99_999_999

_FORMAT = 1  # raise it with every change to the rows
_TRAIN, _VALIDATION = 8000, 400
_ENGLISH = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_GERMAN = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn".split()
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def number_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits; no number is in both."""
    draw = random.Random(0).random  # the one method whose sequence Python promises to keep
    numbers: set[int] = set()
    while len(numbers) < _TRAIN + _VALIDATION:
        least = 10 ** int(draw() * len(str(LARGEST)))  # first how many digits, so that large numbers do not crowd out small ones
        numbers.add(int(draw() * 10) if least == 1 else least + int(draw() * 9 * least))
    rows = [{"translation": {"en": english(number), "de": german(number)}} for number in sorted(numbers, key=lambda number: hash_of(str(number)))]
    return {"train": rows[_VALIDATION:], "validation": rows[:_VALIDATION]}


def numbers_origin() -> list[Any]:
    """What decides the rows."""
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
    """A number below a million is one word. A one is `eins` at the end of it, `ein` before another part."""
    for size, name in ((1000, "tausend"), (100, "hundert")):
        if number >= size:
            count, rest = divmod(number, size)
            return _german_word(count, "ein") + name + (_german_word(rest, one) if rest else "")
    if number < 20:
        return one if number == 1 else _GERMAN[number]
    tens, ones = divmod(number, 10)
    return (f"{_german_word(ones, 'ein')}und" if ones else "") + _GERMAN_TENS[tens - 2]
