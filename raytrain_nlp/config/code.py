"""`trainer:`: the user's own code, named as `package.module:name`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from raytrain_nlp.config.base import Section

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class TrainerConfig(Section):
    """Each name is imported where it is used; modules are looked for in the current directory too, as `python -m` does."""

    model_config = ConfigDict(populate_by_name=True)

    class_: str | None = Field(None, alias="class")
    """A subclass of `transformers.Trainer` with its own `compute_loss`, `training_step`, `create_optimizer`, ..."""
    callbacks: list[str] = []
    """`TrainerCallback` classes, made without arguments, on every rank."""
    compute_metrics: str | None = None
    """A function of `EvalPrediction`; its figures stand beside the task's."""
    preprocess: str | None = None
    """A function of one row (a dict), run where data are prepared; returns the row as the task reads it, or None to leave it
    out. Changing its source prepares the data again."""

    @field_validator("class_", "compute_metrics", "preprocess", "callbacks")
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value if isinstance(value, list) else [value]:
            if name is not None and not _NAME.fullmatch(name):
                raise ValueError("is not of the form package.module:name || Write e.g. my_code:MyTrainer.")
        return value
