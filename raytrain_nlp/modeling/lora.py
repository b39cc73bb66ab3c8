"""LoRA: an adapter on the loaded model, and the merged model from a trained adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.config.lora import MERGE
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.tasks.base import Task


def apply_lora(model: Any, lora: dict[str, Any], task: Task, gradient_checkpointing: bool) -> Any:
    """The model with a new adapter; only the adapter (and `modules_to_save`, biases) is trained.

    Raises `InputError` where PEFT refuses the section for this model.
    """
    import peft

    with _refusals(" for this model"):
        adapted = peft.get_peft_model(model, build_lora_config(lora, task))
    apply_one_kind(adapted)
    if gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches the adapters below a checkpointed layer
    return adapted


def build_lora_config(lora: dict[str, Any], task: Task) -> Any:
    """`peft.LoraConfig` of a section. Raises `InputError` where its values contradict each other, or need a package."""
    import peft

    with _refusals(""):
        return peft.LoraConfig(task_type=task.peft_type, **{key: value for key, value in lora.items() if key != MERGE})


@contextlib.contextmanager
def _refusals(of: str) -> Iterator[None]:
    """What PEFT says inside, as one line."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(Problem("lora", f"PEFT refuses it{of} ({reason})", "Correct the section.")) from error


def without_weights(lora: dict[str, Any]) -> dict[str, Any]:
    """The section for a model without weights: what is computed from them at the start (PiSSA, OLoRA, LoftQ) is left
    out.
    """
    return {key: value for key, value in lora.items() if key not in ("init_lora_weights", "loftq_config")}


def apply_one_kind(model: Any) -> None:
    """Move trained parameters that ZeRO-3 has not sharded to the device and dtype of those that it has.

    DeepSpeed keeps the shards of all trained parameters in one buffer of one dtype, and does not cast a model that was
    sharded while it was loaded. PEFT makes adapters in fp32 whatever the dtype of the base model.
    """
    sharded = next(
        (
            parameter
            for parameter in model.parameters()
            if hasattr(parameter, "ds_id") and parameter.is_floating_point()
        ),
        None,
    )
    if sharded is None:
        return
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(sharded.device, sharded.dtype)


def check_one_kind(model: Any) -> None:
    """Raise `InputError`, naming the odd ones, where trained parameters are of several types or on several devices:
    DeepSpeed's ZeRO-3 would end in an assertion that names none."""
    kinds: dict[tuple[Any, Any], list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault((parameter.device, parameter.dtype), []).append(name)
    if len(kinds) < 2:
        return
    (device, dtype), *others = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    names = [f"{name} ({kind[1]} on {kind[0]})" for kind in others for name in kinds[kind]]
    odd = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
    what = f"ZeRO-3 needs all trained parameters of one type on one device; most are {dtype} on {device}, but not {odd}"
    raise InputError(Problem("model", what, "Train without those, or use deepspeed.zero_stage: 2."))


def trainable_state(model: Any) -> dict[str, Any]:
    """Parameters that are trained, by name: all of a checkpoint of an adapter."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge_adapter(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any, base: str, adapter: Path) -> Any:
    """The base model with the adapter of a folder merged into its weights; needs memory for the whole model."""
    import peft
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # training is over: this model is not to be sharded
    revision = config.revision if base == config.name_or_path else None
    model = load_model(
        config.model_copy(
            update={"name_or_path": base, "config": None, "revision": revision, "attn_implementation": None}
        ),
        task,
        labels,
        tokenizer,
    )
    return peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
