"""`label_names`: the classes in the order of their ids, as a job declares them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from raytrain_nlp.config.base import also
from raytrain_nlp.config.labels import label_text


def _numbers(value: object) -> object:
    """Numbers are labels, too; a bare `no` or `yes`, which YAML has made False and True, is not what was written."""
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


NUMBERS_TOO = also({"type": "array", "items": {"type": "number"}, "minItems": 2})
"""Of the field, for editors."""
LabelNames = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct), BeforeValidator(_numbers)]
