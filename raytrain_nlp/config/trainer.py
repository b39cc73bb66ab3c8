"""`trainer:`: the user's own code, named as `package.module:name`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from raytrain_nlp.config.base import Section

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class CallbackConfig(Section):
    """A callback that is made with arguments."""

    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(alias="class")
    """A `TrainerCallback` class."""
    arguments: dict[str, Any] = {}
    """What it is made with: keyword arguments of its `__init__`."""

    @field_validator("class_")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return _checked_name(value)


class TrainerConfig(Section):
    """Each name is imported where it is used; modules are looked for in the current directory too, as `python -m`
    does.
    """

    model_config = ConfigDict(populate_by_name=True)

    class_: str | None = Field(None, alias="class")
    """A subclass of `transformers.Trainer` with its own `compute_loss`, `training_step`, `create_optimizer`, ..."""
    arguments: dict[str, Any] = {}
    """What its `__init__` takes besides the arguments of `Trainer`."""
    callbacks: list[str | CallbackConfig] = []
    """`TrainerCallback` classes, made on every rank; with arguments as {class: package.module:name, arguments:
    {...}}.
    """
    compute_metrics: str | None = None
    """A function of `EvalPrediction`; its figures stand beside the task's."""
    compute_loss_func: str | None = None
    """A function of the model's outputs, the labels and `num_items_in_batch`, as `Trainer` takes it."""
    preprocess_logits_for_metrics: str | None = None
    """A function of logits and labels, whose result `compute_metrics` gets, as `Trainer` takes it."""
    preprocess: str | None = None
    """A function of one row (a dict), run where data are prepared; returns the row as the task reads it, or None to
    leave it out. Changing its source prepares the data again."""

    @field_validator(
        "class_", "compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics", "preprocess", "callbacks"
    )
    @classmethod
    def _names(cls, value: Any) -> Any:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                _checked_name(name)
        return value

    def callback_configs(self) -> list[CallbackConfig]:
        """The callbacks, all in one form."""
        return [CallbackConfig(class_=found) if isinstance(found, str) else found for found in self.callbacks]


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("is not of the form package.module:name || Write e.g. my_code:MyTrainer.")
    return name
