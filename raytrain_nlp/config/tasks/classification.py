"""`task:` of text classification: one class, several classes or a number."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Contradictions, Section, accepts_also
from raytrain_nlp.config.tasks.label_names import NUMBERS_TOO, LabelNames
from raytrain_nlp.errors import Problem

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
GLUE_COLUMNS = {
    "cola": ["sentence"],
    "mnli": ["premise", "hypothesis"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
    "rte": ["sentence1", "sentence2"],
    "sst2": ["sentence"],
    "stsb": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
"""Text columns of the GLUE tasks on the Hugging Face hub."""


class TextClassification(Section):
    """Assign one class, several classes or a number to a text or a pair of texts."""

    type: Literal["text-classification"]
    glue: Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"] | None = None
    """Name of a GLUE task, which sets its columns, its problem type and its figures."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """As `problem_type` in the configuration of a transformers model."""
    text_columns: list[str] = Field(["text"], min_length=1, json_schema_extra=accepts_also({"type": "string"}))
    """One column with texts, or two with pairs of texts; any number with `text_column_delimiter`."""
    text_column_delimiter: str | None = None
    """Text that joins the columns into one (run_classification.py uses a space). Default: two columns are a pair."""
    label_column: str = "label"
    """Column with labels, as integers or text; for several classes with lists of them; for regression with numbers."""
    label_names: LabelNames | None = Field(None, json_schema_extra=NUMBERS_TOO)
    """All classes in the order of their ids. Default: those that a `datasets` file declares; otherwise the sorted
    labels of the training split, in the order of the model's head where it has the same names."""
    multi_hot: bool | None = None
    """Lists of labels hold a 0 or 1 for each class, instead of the classes themselves. Default: the first rows tell."""

    @model_validator(mode="before")
    @classmethod
    def _by_glue(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("glue") not in GLUE_COLUMNS:
            return values
        kind = "regression" if values["glue"] == "stsb" else "single_label_classification"
        return {"text_columns": GLUE_COLUMNS[values["glue"]], "problem_type": kind, **values}

    @field_validator("text_columns", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> TextClassification:
        if len(self.text_columns) > 2 and self.text_column_delimiter is None:
            what = f"names {len(self.text_columns)} columns, at most 2 of which a tokenizer takes as they are"
            todo = "Name two, or join them: set task.text_column_delimiter."
            raise Contradictions([Problem("task.text_columns", what, todo)])
        if self.problem_type == "regression" and self.label_names:
            raise ValueError("label_names: a regression has no classes || Remove label_names, or problem_type.")
        if self.multi_hot is not None and self.problem_type != PROBLEM_TYPES[1]:
            raise ValueError(
                f"multi_hot: is for lists of labels, not for {self.problem_type} || Remove it, or set problem_type: "
                f"{PROBLEM_TYPES[1]}."
            )
        if (
            self.glue
            and (self.glue == "stsb") != (self.problem_type == "regression")
            or (self.glue and self.problem_type == PROBLEM_TYPES[1])
        ):
            raise ValueError(
                f"problem_type: {self.problem_type} is not what GLUE's {self.glue} is || Remove problem_type or glue."
            )
        return self
