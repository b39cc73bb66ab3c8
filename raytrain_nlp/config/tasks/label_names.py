"""`label_names`: the classes that a job declares, in the order of their ids."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from raytrain_nlp.config.base import accepts_also
from raytrain_nlp.config.labels import label_text


def _numbers(value: object) -> object:
    """Whole numbers as the text of a label. A bare `no` or `yes`, which YAML reads as False or True, stays as it is and
    is refused.
    """
    return (
        [label_text(name) if type(name) in (int, float) and name % 1 == 0 else name for name in value]
        if isinstance(value, list)
        else value
    )


def _distinct(value: list[str]) -> list[str]:
    value = [label_text(name) for name in value]
    if len(set(value)) != len(value):
        raise ValueError("names a label twice || Give each label once.")
    return value


NUMBERS_TOO = accepts_also({"type": "array", "items": {"type": "number"}, "minItems": 2})
"""`json_schema_extra` of a `label_names` field: the list may also hold numbers."""
LabelNames = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct), BeforeValidator(_numbers)]
