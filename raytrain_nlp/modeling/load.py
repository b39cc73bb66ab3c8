"""The trained model of a folder: whole, or an adapter on its base; as it was trained, or for predictions alone."""

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


def load_for_prediction(
    folder: Path, base: ModelConfig, task: Task, labels: list[str], tokenizer: Any, dtype: str | None
) -> Any:
    """`load_trained` with weights of `dtype` (None: as `base` says). A head that scores rows, rather than tokens, keeps
    float32: its few outputs would else be rounded to a grid of two to three digits, and rows be tied.
    """
    model = load_trained(folder, base.model_copy(update={"dtype": dtype}) if dtype else base, task, labels, tokenizer)
    if dtype not in (None, "float32"):
        _keep_head_exact(model)
    return model


def _keep_head_exact(model: Any) -> None:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter's
    body = getattr(whole, whole.base_model_prefix, None)
    if whole.get_output_embeddings() is not None or body is None:
        return
    for child in whole.children():
        if child is not body:
            child.float()
    body.register_forward_hook(lambda module, inputs, outputs: _as_float(outputs))


def _as_float(outputs: Any) -> Any:
    """Of a model's outputs the tensors of floating point in float32."""

    def cast(value: Any) -> Any:
        return value.float() if getattr(value, "is_floating_point", lambda: False)() else value

    if isinstance(outputs, tuple):
        return tuple(map(cast, outputs))
    for key, value in outputs.items():
        outputs[key] = cast(value)
    return outputs
