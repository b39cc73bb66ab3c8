"""`task:` of multiple choice: which of several endings goes on with a context. Columns follow run_swag.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raytrain_nlp.config.base import Section


class MultipleChoice(Section):
    """One of several endings of a context."""

    type: Literal["multiple-choice"]
    context_column: str = "context"
    """What all endings go on with."""
    start_column: str | None = None
    """A question, or how each ending begins (`sent2` of SWAG): put before each of them; may be blank."""
    ending_columns: list[str] = Field(["ending0", "ending1", "ending2", "ending3"], min_length=2)
    """The endings, a column each."""
    label_column: str = "label"
    """Column with the number of the right ending, from 0."""

    @field_validator("ending_columns")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a column twice || Give each ending once.")
        return value
