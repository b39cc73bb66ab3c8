"""The trained model of a folder: whole, or an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.tasks.base import Task


def load_trained(folder: Path, base: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """The model of a folder this package exported; `base` says what an adapter stands on. Raises `InputError` as
    `load_model`.
    """
    if not (folder / "adapter_config.json").exists():
        return load_model(
            base.model_copy(update={"name_or_path": str(folder), "config": None, "revision": None}),
            task,
            labels,
            tokenizer,
        )
    import peft

    return peft.PeftModel.from_pretrained(load_model(base, task, labels, tokenizer), str(folder))
