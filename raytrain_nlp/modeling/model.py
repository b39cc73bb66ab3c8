"""The model: pretrained or from its config, with the task's head, ready to be sharded."""

from __future__ import annotations

import contextlib
from typing import Any

from raytrain_nlp.compat.transformers import apply_flash
from raytrain_nlp.config.hardware import uses_torch_flash
from raytrain_nlp.config.model import ModelConfig
from raytrain_nlp.modeling.configuration import build_model_config, told_as_problem
from raytrain_nlp.tasks.base import Task

_VOCABULARY_SEED = 0


def load_model(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """Load or build the model. Under ZeRO-3 the weights are sharded on the way in (`TrainingArguments` must exist
    already).

    Raises `InputError` where name, config or weights do not make a model for the task.
    """
    import transformers
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from raytrain_nlp.modeling.rank_symmetry import apply_experts

    auto_class = getattr(transformers, task.auto_model)
    common: dict[str, Any] = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
    if uses_torch_flash(config.attention):
        from raytrain_nlp.modeling.flash_kernels import torch_attend, torch_attend_documents

        apply_flash(torch_attend, torch_attend_documents)
    with told_as_problem(config):
        if config.name_or_path is not None:
            model = auto_class.from_pretrained(
                config.name_or_path,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=config.weights_dtype,
                **common,
                **task.model_kwargs(labels),
            )
        else:
            made = build_model_config(config, task, labels, tokenizer)
            model = auto_class.from_config(made, dtype=config.weights_dtype, **common)
    grow_vocabulary(model, tokenizer)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    task.apply_to_model(model, tokenizer)
    apply_experts(model, is_deepspeed_zero3_enabled())
    return model


def grow_vocabulary(model: Any, tokenizer: Any) -> None:
    """Enlarge the embeddings to the tokenizer's vocabulary. New rows are drawn with a fixed seed, so that they are the
    same whenever the model is loaded: an adapter does not save them where it does not train them.
    """
    if len(tokenizer) <= model.get_input_embeddings().num_embeddings:
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_VOCABULARY_SEED)
        model.resize_token_embeddings(len(tokenizer))


def clear_padding(model: Any) -> None:
    """Zero the padding in the last ranks' ZeRO-3 shards, which makes all shards of a parameter equally large.

    DeepSpeed does not initialize it (`_partition_param`): arbitrary values would be copied into master weights, decayed
    by the optimizer and written into checkpoints, whose bytes would differ from run to run.
    """
    for parameter in model.parameters():
        part = getattr(parameter, "ds_tensor", None)
        if part is None or not part.numel() or hasattr(part, "ds_quant_scale"):  # not sharded, on NVMe, quantized
            continue
        first = _rank_in(parameter.ds_process_group) * part.ds_numel
        part.data[max(parameter.ds_numel - first, 0) :].zero_()


def disable_dropout(model: Any) -> None:
    """Let no module of `model` drop anything out."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _rank_in(group: Any) -> int:
    import torch.distributed

    return torch.distributed.get_rank(group)


def build_empty_model(config: ModelConfig, task: Task, labels: list[str], tokenizer: Any) -> Any:
    """The same model without memory for its weights (on torch's meta device): its structure, its config and what saves
    it.
    """
    import torch
    import transformers

    kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    # other implementations need a GPU's libraries, and keep what `sdpa` keeps
    attention = {"attn_implementation": "eager"} if config.attn_implementation == "eager" else {}
    with told_as_problem(config), torch.device("meta"):
        if config.config:
            model_config = build_model_config(config, task, labels, tokenizer)
        else:
            model_config = transformers.AutoConfig.from_pretrained(
                config.name_or_path, **kwargs, **task.model_kwargs(labels)
            )
        model = getattr(transformers, task.auto_model).from_config(
            model_config, trust_remote_code=config.trust_remote_code, **attention
        )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if config.name_or_path and model.can_generate():
        with contextlib.suppress(OSError):  # most models have none
            model.generation_config = transformers.GenerationConfig.from_pretrained(config.name_or_path, **kwargs)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    task.apply_to_model(model, tokenizer)
    return model
