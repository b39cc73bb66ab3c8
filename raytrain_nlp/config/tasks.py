"""`task:`: what is learned. One class a task, joined in a union on `type`; the code of each is in `raytrain_nlp/tasks/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from raytrain_nlp.config.base import Section


class TextClassification(Section):
    """One label for one text, or for a pair of texts."""

    type: Literal["text-classification"]
    text_columns: list[str] = Field(["text"], min_length=1, max_length=2)
    """One column, or two for sentence pairs."""
    label_column: str = "label"
    """Column with integer or string labels."""
    label_names: list[str] | None = Field(None, min_length=2)
    """All labels in the order of their ids; default: the sorted labels of the training split."""

    @field_validator("text_columns", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("label_names")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("names a label twice || Give each label once.")
        return value


# A second task makes this a union: Annotated[TextClassification | CausalLm, Field(discriminator="type")].
TaskConfig = Annotated[TextClassification, Field()]
TASK_TYPES = ("text-classification",)
