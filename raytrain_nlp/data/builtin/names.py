"""`builtin:names`: people, places, organizations and dates in sentences made by rules. Rows {"tokens", "ner_tags"},
with tags in IOB2.

Names are made of syllables, and a third of the names of any kind end like a surname, so that a model has to read the
words around a name. Half of the names in validation rows are in no training row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raytrain_nlp.data.builtin.prose import is_held_out

_FORMAT = 1  # raise it with every change to the rows
_TRAIN, _VALIDATION = 6_000, 600
_HELD_OUT_PERCENT = 20
_FIRST = "Ada Bruno Clara David Elena Farid Greta Hugo Irene Jonas Kaito Lena Marco Nadia Omar Paula Ravi Sofia Tomas Yara".split()  # noqa: E501
_STARTS = "Al Bar Cor Del Fen Gar Hol Kes Lan Mor Nor Pel Ros Sten Tor Val Wen Zan".split()
_MIDDLES = "a be di go li mo ne ri so ta".split()
_ENDS = {
    "surname": "berg dale ford ham lin man sen ski son vic".split(),
    "place": "burg by dale field ford ham mouth ton ville wick".split(),
}
_FIRMS = ["Bank", "Brothers", "Institute", "Motors", "Press", "Shipping Company", "Steel", "University"]
_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_TEMPLATES = """
PER was born in LOC on DATE .
On DATE , PER moved from LOC to LOC .
PER and PER met in LOC last spring .
ORG opened a new office in LOC on DATE .
PER has worked for ORG since DATE .
The chairman of ORG , PER , resigned on DATE .
" We are leaving LOC , " said PER of ORG .
It rained in LOC for three days , and nobody came .
ORG bought ORG for two hundred million in DATE .
The train from LOC to LOC was late again .
Nobody at ORG knew where PER had gone .
PER wrote to ORG about the bridge near LOC .
In DATE the people of LOC elected PER mayor .
Workers of ORG went on strike in LOC .
The letter , dated DATE , was signed by PER .
PER , PER and PER share a house outside LOC .
May we meet in LOC on DATE ? asked PER .
Two engineers left ORG in DATE and joined ORG .
The river at LOC froze early that year .
They say that March was cold and May was worse .
A bank in LOC lent PER the money .
PER studied at ORG , then taught in LOC .
The old press stood still until DATE .
ORG , founded by PER in DATE , is older than LOC .
LOC lost to LOC by two goals on DATE .
He reads the papers every morning and says little .
""".strip().splitlines()

Draw = Callable[[], float]


def name_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits; no sentence occurs twice."""
    draw = random.Random(0).random  # the only method whose sequence Python guarantees between versions
    seen: set[tuple[str, ...]] = set()
    return {"validation": _rows(draw, _VALIDATION, 0.5, seen), "train": _rows(draw, _TRAIN, 0.0, seen)}


def names_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT]


def _rows(draw: Draw, count: int, held_out: float, seen: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Rows in which a share `held_out` of the names are ones that no training row has."""
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        tokens, tags = _sentence(draw, held_out)
        if tuple(tokens) not in seen:
            seen.add(tuple(tokens))
            rows.append({"tokens": tokens, "ner_tags": tags})
    return rows


def _sentence(draw: Draw, held_out: float) -> tuple[list[str], list[str]]:
    tokens: list[str] = []
    tags: list[str] = []
    for word in _one(draw, _TEMPLATES).split():
        if word not in _MAKERS:
            tokens.append(word)
            tags.append("O")
            continue
        words = _MAKERS[word](draw, draw() < held_out)
        tokens += words
        tags += [f"{'I' if place else 'B'}-{word}" for place in range(len(words))]
    return tokens, tags


def _one(draw: Draw, values: list[str]) -> str:
    return values[int(draw() * len(values))]


def _name(draw: Draw, kind: str, held_out: bool) -> str:
    """A name made of syllables. With a probability of 1/3 it ends like a surname, whatever its kind."""
    while True:
        ends = _ENDS["surname"] if draw() < 1 / 3 else _ENDS[kind]
        made = _one(draw, _STARTS) + (_one(draw, _MIDDLES) if draw() < 0.5 else "") + _one(draw, ends)
        if is_held_out(made, _HELD_OUT_PERCENT) == held_out:
            return made


def _person(draw: Draw, held_out: bool) -> list[str]:
    surname, kind = _name(draw, "surname", held_out), draw()
    if kind < 0.2:
        return [surname]
    return [f"{'ABCDEFGHJKLM'[int(draw() * 12)]}." if kind < 0.4 else _one(draw, _FIRST), surname]


def _place(draw: Draw, held_out: bool) -> list[str]:
    name, kind = _name(draw, "place", held_out), draw()
    return ["New", name] if kind < 0.15 else ["Port", name] if kind < 0.25 else [name]


def _organization(draw: Draw, held_out: bool) -> list[str]:
    name, firm = _name(draw, "place" if draw() < 0.5 else "surname", held_out), _one(draw, _FIRMS).split()
    return [*firm, "of", name] if firm[0] in ("Bank", "University", "Institute") and draw() < 0.5 else [name, *firm]


def _date(draw: Draw, held_out: bool) -> list[str]:
    month, day, year = _one(draw, _MONTHS), str(1 + int(draw() * 28)), str(1900 + int(draw() * 120))
    kind = int(draw() * 5)
    return [[day, month, year], [month, day], [month, year], [year], [_one(draw, _DAYS)]][kind]


_MAKERS: dict[str, Callable[[Draw, bool], list[str]]] = {
    "PER": _person, "LOC": _place, "ORG": _organization, "DATE": _date,
}  # fmt: skip
