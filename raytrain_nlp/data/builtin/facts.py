"""`builtin:facts`: questions about people, answered in a paragraph about several of them. Rows {"id", "context",
"question", "answers"}, in the format of SQuAD.

The rows are made by rules. A paragraph tells a few facts about each of three people, often of the same kinds, so that
only person and kind together lead to the answer. No person (first and last name) of a validation row is in a training
row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raytrain_nlp.data.builtin.prose import is_held_out

_FORMAT = 1  # raise it with every change to the rows
_TRAIN, _VALIDATION, _HELD_OUT_PERCENT = 8_000, 400, 10
_PEOPLE, _MOST_FACTS = 3, 4
_FIRST = "Ada Amos Bela Cleo Dora Edgar Flora Greta Hugo Ida Jonas Karla Lena Mara Nils Olga Paul Rosa Sven Tilda"
_LAST = "Berg Brandt Diaz Eklund Fabre Hansen Ito Jansen Keller Lind Moreau Novak Okafor Petri Rossi Silva Vogel Weiss"
_FACTS = {
    "home": ("{} lives in {}.", "Where does {} live?"),
    "work": ("{} works as a {}.", "What does {} work as?"),
    "pet": ("{} keeps a {} at home.", "Which animal does {} keep?"),
    "music": ("In the evening {} plays the {}.", "Which instrument does {} play?"),
    "birth": ("{} was born in {}.", "When was {} born?"),
    "house": ("The house of {} is painted {}.", "What colour has the house of {}?"),
}
"""Kind of fact -> a sentence with person and answer, and the question."""
_ANSWERS = {
    "home": "Bergen, Cork, Dresden, Genoa, Lyon, Malmo, Porto, Riga, Turin, Utrecht",
    "work": "baker, carpenter, dentist, farmer, lawyer, nurse, pilot, sailor, tailor, teacher",
    "pet": "cat, dog, goat, hamster, horse, parrot, pigeon, rabbit, snake, turtle",
    "music": "cello, clarinet, drums, flute, guitar, harp, oboe, piano, trumpet, violin",
    "birth": ", ".join(str(year) for year in range(1951, 1999)),
    "house": "dark green, light blue, pale yellow, snow white, deep violet, red, black, brown",
}


def fact_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits; no paragraph occurs twice."""
    draw = random.Random(0).random  # the only method whose sequence Python guarantees between versions
    seen: set[str] = set()
    return {"validation": _rows(draw, _VALIDATION, True, seen), "train": _rows(draw, _TRAIN, False, seen)}


def facts_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT]


def _rows(draw: Callable[[], float], count: int, held_out: bool, seen: set[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        facts = _facts(draw, held_out)
        context = " ".join(_FACTS[kind][0].format(person, answer) for person, kind, answer in facts)
        person, kind, answer = _one(draw, facts)
        if context not in seen:
            seen.add(context)
            sentence = _FACTS[kind][0].format(person, answer)
            start = context.index(sentence) + sentence.rindex(answer)
            answers = {"text": [answer], "answer_start": [start]}
            name = f"{'validation' if held_out else 'train'}-{len(rows)}"
            rows.append(
                {"id": name, "context": context, "question": _FACTS[kind][1].format(person), "answers": answers}
            )
    return rows


def _facts(draw: Callable[[], float], held_out: bool) -> list[tuple[str, str, str]]:
    """Person, kind and answer of each sentence of a paragraph, in random order."""
    people: list[str] = []
    while len(people) < _PEOPLE:
        person = f"{_one(draw, _FIRST.split())} {_one(draw, _LAST.split())}"
        if is_held_out(person, _HELD_OUT_PERCENT) == held_out and person not in people:
            people.append(person)
    facts = []
    for person in people:
        kinds = sorted(_FACTS, key=lambda _: draw())[: 1 + int(draw() * _MOST_FACTS)]
        facts += [(person, kind, _one(draw, _ANSWERS[kind].split(", "))) for kind in kinds]
    return sorted(facts, key=lambda _: draw())


def _one(draw: Callable[[], float], values: list[Any]) -> Any:
    return values[int(draw() * len(values))]
