"""The model: pretrained or from its config, with the task's head, ready to be sharded."""

from __future__ import annotations

import contextlib
from typing import Any

from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.failures import from_another_rank, out_of_memory, raised_in
from raytrain_nlp.tasks.base import Task


def load_model(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """Load or build the model. Under ZeRO-3 the weights are sharded on the way in (`TrainingArguments` must exist already).

    Raises `InputError` where name, config or weights do not make a model for the task.
    """
    import transformers
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from raytrain_nlp.modeling.alike import apply_experts

    auto_class = getattr(transformers, task.auto_model)
    common: dict[str, Any] = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
    try:
        if config.name_or_path is not None:
            model = auto_class.from_pretrained(
                config.name_or_path,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=config.dtype or "float32",
                **common,
                **task.model_kwargs(labels),
            )
        else:
            model = auto_class.from_config(build_model_config(config, task, labels, tokenizer), **common)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, AssertionError) as error:
        if raised_in(error, "deepspeed") or out_of_memory(str(error)) or from_another_rank(error):
            raise  # no fault of the model
        name = config.name_or_path or config.config["model_type"]
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(Problem("model", f"cannot be loaded for this task ({name}: {reason})", "Check name, config and task.")) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    task.apply_to_model(model, tokenizer)
    apply_experts(model, is_deepspeed_zero3_enabled())
    return model


def clear_padding(model: Any) -> None:
    """Zero what ZeRO-3 has appended to the last ranks' parts of the weights, so that all parts are of one size.

    DeepSpeed leaves there whatever the memory held before (`_partition_param`): it would get into master weights, be decayed
    by the optimizer and be written into checkpoints, where no two runs would have the same bytes.
    """
    for parameter in model.parameters():
        part = getattr(parameter, "ds_tensor", None)
        if part is None or not part.numel() or hasattr(part, "ds_quant_scale"):  # not sharded, on NVMe, quantized
            continue
        first = _rank_in(parameter.ds_process_group) * part.ds_numel
        part.data[max(parameter.ds_numel - first, 0) :].zero_()


def _rank_in(group: Any) -> int:
    import torch.distributed

    return torch.distributed.get_rank(group)


def build_empty_model(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """The same model without memory for its weights (on torch's meta device): its structure, its config and what saves it."""
    import torch
    import transformers

    kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if config.config:
        model_config = build_model_config(config, task, labels, tokenizer)
    else:
        model_config = transformers.AutoConfig.from_pretrained(config.name_or_path, **kwargs, **task.model_kwargs(labels))
    with torch.device("meta"):
        # other implementations need a GPU's libraries, and keep what `sdpa` keeps
        attention = {"attn_implementation": "eager"} if config.attn_implementation == "eager" else {}
        model = getattr(transformers, task.auto_model).from_config(model_config, trust_remote_code=config.trust_remote_code, **attention)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if config.name_or_path and model.can_generate():
        with contextlib.suppress(OSError):  # most models have none
            model.generation_config = transformers.GenerationConfig.from_pretrained(config.name_or_path, **kwargs)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    task.apply_to_model(model, tokenizer)
    return model


def build_model_config(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """The `transformers` config of a model from scratch: the job's fields, the tokenizer's vocabulary, the task's labels."""
    from transformers import CONFIG_MAPPING, AutoConfig

    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = {"cls_token_id": first, "sep_token_id": last, "bos_token_id": first, "eos_token_id": last}
    defaults = CONFIG_MAPPING[config.config["model_type"]]().to_dict()  # ids of a vocabulary of their own
    ids = {name: value for name, value in ids.items() if isinstance(defaults.get(name), int)}
    special = {**ids, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **task.special_tokens(tokenizer)}
    values = {**special, **config.config, **task.model_kwargs(labels)}
    return AutoConfig.for_model(values.pop("model_type"), **values)
