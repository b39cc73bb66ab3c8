"""`task:` of multiple choice: which of several endings continues a context. Columns are named as in run_swag.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raytrain_nlp.config.base import Section


class MultipleChoice(Section):
    """Choose the right one of several endings of a context."""

    type: Literal["multiple-choice"]
    context_column: str = "context"
    """Column with the context that every ending continues."""
    start_column: str | None = None
    """Column with text that is put before each ending: a question, or the beginning of the endings (`sent2` of SWAG).
    Its values may be blank."""
    ending_columns: list[str] = Field(["ending0", "ending1", "ending2", "ending3"], min_length=2)
    """Columns with the endings, one each."""
    label_column: str = "label"
    """Column with the index of the right ending, from 0."""

    @field_validator("ending_columns")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a column twice || Give each ending once.")
        return value
