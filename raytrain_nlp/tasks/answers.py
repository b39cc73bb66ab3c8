"""Questions, contexts and right answers of rows: what is wrong with them, and what figures keep of them."""

from __future__ import annotations

import json
from typing import Any

from raytrain_nlp.config.tasks.question import Answered
from raytrain_nlp.tasks.base import check_text

EXAMPLE = "example"
"""Column of the token store: JSON that `example_of` returns, beside the first tokens of a row; null beside others."""
_FORM = "{text: [...], answer_start: [...]}"
_SHOWN = 40


def check_question(config: Answered, values: dict[str, Any]) -> str | None:
    """Why nothing can be answered, or None."""
    columns = (config.question_column, config.context_column)
    return next((reason for column in columns if (reason := check_text(values, column))), None)


def check_answers(config: Answered, values: dict[str, Any], placed: bool) -> str | None:
    """Why the answers of a row with a good question and context are bad, or None; `placed`: must each say where it
    stands?
    """
    column = config.answer_column
    field = f"field '{column}'"
    if column not in values:
        return f"{field} is missing"
    if values[column] is None:
        return f"{field} is null"
    found = _lists_of(values[column])
    if found is None:
        return f"{field} is {_shown(values[column])}, not {_FORM}"
    texts, starts = found
    if not texts and not config.version_2_with_negative:
        return f"{field} has no answer, and task.version_2_with_negative is not set"
    if placed and len(starts) != len(texts):
        return f"{field} has {len(texts)} texts and {len(starts)} of answer_start"
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            return f"{field} has the answer {_shown(text)}, not a text"
        if placed and (reason := _misplaced(values[config.context_column], text, starts[number])):
            return f"{field}: {reason}"
    return None


def texts_of(config: Answered, values: dict[str, Any]) -> list[str]:
    """The right answers of a good row; none where the question has no answer."""
    found = _lists_of(values[config.answer_column])
    assert found is not None, "the row was checked"
    return list(found[0])


def first_answer(config: Answered, values: dict[str, Any]) -> tuple[int, int] | None:
    """Where the answer that is learned begins and ends in the context of a good row, in characters; None: it has
    none.
    """
    found = _lists_of(values[config.answer_column])
    assert found is not None, "the row was checked"
    texts, starts = found
    return (int(starts[0]), int(starts[0]) + len(texts[0])) if texts else None


def example_of(config: Answered, values: dict[str, Any], context: bool) -> str:
    """What figures and scores read of a good row, as JSON: its answers, its id where it has one, and its context where
    it is asked for.
    """
    found: dict[str, Any] = {"answers": texts_of(config, values)}
    found |= {"id": str(values["id"])} if values.get("id") is not None else {}
    found |= {"context": values[config.context_column]} if context else {}
    return json.dumps(found)


def examples_of(column: list[str | None]) -> list[dict[str, Any] | None]:
    """The column `EXAMPLE`, read again."""
    return [None if text is None else json.loads(text) for text in column]


def _lists_of(value: Any) -> tuple[list[Any], list[Any]] | None:
    """Texts and starts of answers as one mapping of lists or as a list of mappings; None of anything else."""
    if isinstance(value, (list, tuple)):
        if not all(isinstance(one, dict) for one in value):
            return None
        return [one.get("text") for one in value], [one.get("answer_start") for one in value]
    if not isinstance(value, dict) or "text" not in value:
        return None
    texts, starts = value["text"], value.get("answer_start")
    if not isinstance(texts, (list, tuple)) or not isinstance([] if starts is None else starts, (list, tuple)):
        return None
    return list(texts), list(starts or [])


def _misplaced(context: str, text: str, start: Any) -> str | None:
    """How an answer does not stand where it is said to, and where it does."""
    if isinstance(start, bool) or not isinstance(start, (int, float)) or start != int(start):
        return f"answer_start is {_shown(start)}, not the place of a character"
    start = int(start)
    if start >= 0 and context.startswith(text, start):
        return None
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    there = f"{_shown(text)} stands at {min(places, key=lambda p: abs(p - start))}" if places else "nor anywhere else"
    at = context[max(start, 0) : max(start, 0) + len(text)] if start >= 0 else ""
    return (
        f"the context has {_shown(at)} at answer_start {start}, not {_shown(text)}: {there}"
        if places
        else (f"the context does not have {_shown(text)}, at answer_start {start} or {there}")
    )


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
