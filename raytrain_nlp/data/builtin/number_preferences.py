"""`builtin:numbers/preferences`: a number in digits, and two spellings of which one is right. Rows {"prompt", "chosen",
"rejected"}.

The wrong spelling is that of a number with one other digit, or with two digits that have changed places, so that only
digits and spelling together tell which is right. No number of three or more digits is in both splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raytrain_nlp.data.builtin.number_words import english
from raytrain_nlp.data.builtin.prose import is_held_out

_FORMAT = 1  # raise it with every change to the rows
_TRAIN, _VALIDATION = 8_000, 400
_DIGITS, _HELD_OUT_PERCENT = 4, 10


def preference_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits; no pair of numbers occurs twice."""
    draw = random.Random(0).random  # the only method whose sequence Python guarantees between versions
    seen: set[tuple[int, int]] = set()
    return {"validation": _rows(draw, _VALIDATION, True, seen), "train": _rows(draw, _TRAIN, False, seen)}


def preferences_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT]


def _rows(draw: Callable[[], float], count: int, held_out: bool, seen: set[tuple[int, int]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        digits = 1 + int(draw() * _DIGITS)
        right = int(10 ** (digits - 1) + draw() * 9 * 10 ** (digits - 1))
        wrong = _changed(draw, str(right))
        if right >= 100 and is_held_out(str(right), _HELD_OUT_PERCENT) != held_out:
            continue
        if wrong != right and (right, wrong) not in seen:
            seen.add((right, wrong))
            spelled = " ".join(str(right))
            rows.append({"prompt": f"{spelled} =", "chosen": f" {english(right)}", "rejected": f" {english(wrong)}"})
    return rows


def _changed(draw: Callable[[], float], digits: str) -> int:
    """A number with one other digit, or with two neighbouring ones in the other order."""
    place = int(draw() * len(digits))
    if draw() < 0.5 and place + 1 < len(digits):
        return int(digits[:place] + digits[place + 1] + digits[place] + digits[place + 2 :])
    return int(digits[:place] + str(int(draw() * 10)) + digits[place + 1 :])
