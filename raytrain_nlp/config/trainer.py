"""`trainer:`: your own classes and functions, named as `package.module:name`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from raytrain_nlp.config.base import Section

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class CallbackConfig(Section):
    """A callback whose class takes arguments."""

    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(alias="class")
    """A `TrainerCallback` class, as package.module:name."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of its `__init__`."""

    @field_validator("class_")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return _checked_name(value)


class TrainerConfig(Section):
    """Your own code, each part as `package.module:name`. Modules are looked for in the current directory too, as with
    `python -m`.
    """

    model_config = ConfigDict(populate_by_name=True)

    class_: str | None = Field(None, alias="class")
    """A subclass of `transformers.Trainer` with its own `compute_loss`, `training_step`, `create_optimizer`, ..."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of its `__init__` besides those of `Trainer`."""
    callbacks: list[str | CallbackConfig] = []
    """`TrainerCallback` classes; each rank makes an instance. With arguments: {class: package.module:name, arguments:
    {...}}."""
    compute_metrics: str | None = None
    """A function of `EvalPrediction`, as `Trainer` takes it. Its figures are reported beside those of the task."""
    compute_loss_func: str | None = None
    """A function of the model's outputs, the labels and `num_items_in_batch`, as `Trainer` takes it."""
    preprocess_logits_for_metrics: str | None = None
    """A function of logits and labels, as `Trainer` takes it; `compute_metrics` receives its result."""
    preprocess: str | None = None
    """A function of one row (a dict), called when the data are prepared. It returns the row as the task reads it, or
    None to leave it out. When its source code changes, the data are prepared again."""

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
        """All callbacks as `CallbackConfig`."""
        return [CallbackConfig(class_=found) if isinstance(found, str) else found for found in self.callbacks]


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("is not of the form package.module:name || Write e.g. my_code:MyTrainer.")
    return name
