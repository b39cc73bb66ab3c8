"""LoRA: an adapter on the loaded model, and the merged model from a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raytrain_nlp.config.lora import MERGE
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.tasks.base import Task


def apply_lora(model: Any, lora: dict[str, Any], task: Task, gradient_checkpointing: bool) -> Any:
    """The model with a new adapter; only the adapter (and `modules_to_save`, biases) is trained.

    Raises `InputError` where PEFT refuses the section for this model.
    """
    import peft

    values = {key: value for key, value in lora.items() if key != MERGE}
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task.peft_type, **values))
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(Problem("lora", f"PEFT refuses it for this model ({reason})", "Correct the section.")) from error
    if gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches the adapters below a checkpointed layer
    return adapted


def without_weights(lora: dict[str, Any]) -> dict[str, Any]:
    """The section for a model without weights: what is computed from them at the start (PiSSA, OLoRA, LoftQ) is left out."""
    return {key: value for key, value in lora.items() if key not in ("init_lora_weights", "loftq_config")}


def trainable_state(model: Any) -> dict[str, Any]:
    """Parameters that are trained, by name: all of a checkpoint of an adapter."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge_adapter(config: ModelConfig, task: Task, labels: list[str], base: str, adapter: Path) -> Any:
    """The base model with the adapter of a folder merged into its weights; needs memory for the whole model."""
    import peft
    import transformers
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # training is over: this model is not to be sharded
    kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code, "dtype": config.dtype or "float32", **task.model_kwargs(labels)}
    model = getattr(transformers, task.auto_model).from_pretrained(base, **kwargs)
    return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
