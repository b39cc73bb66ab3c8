"""`TrainingArguments` and the DeepSpeed dictionary of one worker. Built before the model: that is what switches ZeRO-3
on.
"""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.deepspeed import DeepSpeedConfig
from raytrain_nlp.errors import InputError, Problem

CPU_BUCKET_MB = 256


def build_arguments(job: TrainJob, output_dir: str, generates: bool) -> Any:
    """The worker's `TrainingArguments` (`Seq2SeqTrainingArguments` where evaluation generates).

    Args:
        output_dir: node-local scratch; nothing of value is written there.
    """
    from transformers import GenerationConfig, Seq2SeqTrainingArguments, TrainingArguments

    values, use_gpu = job.arguments(), job.workers.use_gpu
    if values.get("neftune_noise_alpha") == 0:  # no noise, not noise of size 0
        del values["neftune_noise_alpha"]
    if isinstance(values.get("generation_config"), dict):
        values["generation_config"] = GenerationConfig(**values["generation_config"])
    try:
        return (Seq2SeqTrainingArguments if generates else TrainingArguments)(
            **{
                # on CPU gloo and the backward pass share the cores: nothing overlaps, and one bucket costs least
                **({} if use_gpu else {"ddp_bucket_cap_mb": CPU_BUCKET_MB}),
                **_checkpointing(job, values),
                **values,
                "output_dir": output_dir,
                "use_cpu": not use_gpu,  # without it every CPU rank believes in a world of one
                "deepspeed": build_deepspeed(job.deepspeed, use_gpu) if job.deepspeed.enabled else None,
                "report_to": [],
                "disable_tqdm": True,
                "logging_nan_inf_filter": False,  # a NaN must not be hidden: the trainer stops at it
                "remove_unused_columns": False,
                "save_total_limit": None,  # our own retention knows committed checkpoints from others
            }
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            Problem("training", f"transformers refuses it: {str(error).splitlines()[0]}", "Correct the section.")
        ) from error


def _checkpointing(job: TrainJob, values: dict[str, Any]) -> dict[str, Any]:
    """LoRA under ZeRO-3: recomputed activations find frozen weights released (transformers #47254), unless the
    reentrant form is used.
    """
    asked = values.get("gradient_checkpointing") or values.get("activation_checkpointing")
    given = values.get("gradient_checkpointing_kwargs") or values.get("activation_checkpointing_kwargs")
    if not asked or given or job.lora is None or job.deepspeed.zero_stage != 3:
        return {}
    key = "activation_checkpointing_kwargs" if "activation_checkpointing" in values else "gradient_checkpointing_kwargs"
    return {key: {"use_reentrant": True}}


def build_deepspeed(section: DeepSpeedConfig, use_gpu: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of a job. "auto" is filled by Hugging Face from `TrainingArguments`."""
    if section.config is not None:
        return _complete(section.config, use_gpu)
    zero: dict[str, Any] = {"stage": section.zero_stage, "contiguous_gradients": True, "overlap_comm": use_gpu}
    if section.offload_optimizer:
        zero["offload_optimizer"] = {"device": section.offload_optimizer, "pin_memory": use_gpu}
    if section.offload_param:
        zero["offload_param"] = {"device": section.offload_param, "pin_memory": use_gpu}
    if section.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # `model/` needs whole weights
        threshold = section.stage3_param_persistence_threshold
        zero["stage3_param_persistence_threshold"] = "auto" if threshold is None else threshold
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's Adam needs no compiler; `worker.offload` chooses for a GPU
        "steps_per_print": 10**9,
    }


def _complete(config: dict[str, Any], use_gpu: bool) -> dict[str, Any]:
    """The user's own configuration, with what this package needs and the file leaves open."""
    config = copy.deepcopy(config)
    for key in (
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        config.setdefault(key, "auto")
    config.setdefault("steps_per_print", 10**9)
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_optimization", {"stage": 0})  # DeepSpeed's default, which accelerate wants to be said
    if config.get("zero_optimization", {}).get("stage") == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True  # `model/` needs whole weights
    if not use_gpu:
        config["zero_force_ds_cpu_optimizer"] = False  # torch's Adam, as above: DeepSpeed's would be compiled
        optimizer = config.get("optimizer", {})
        if str(optimizer.get("type", "")).lower() in ("adam", "adamw"):
            optimizer.setdefault("params", {}).setdefault("torch_adam", True)
    return config


def apply_deepspeed_environment(use_gpu: bool, timeout_s: float) -> None:
    """Make DeepSpeed join the process group Ray Train made, without compiling anything on CPU.

    Must run before `from_pretrained`: `deepspeed.zero.Init` otherwise assumes a world of one. `timeout_s`: how long a
    rank waits for another, also in the groups that DeepSpeed makes besides.
    """
    from raytrain_nlp.compat.deepspeed import apply_without_shared_memory_op, import_deepspeed
    from raytrain_nlp.compat.torch import set_group_timeout

    deepspeed = import_deepspeed()
    if not use_gpu:
        apply_without_shared_memory_op()
    set_group_timeout(timeout_s)
    deepspeed.init_distributed(
        dist_backend="nccl" if use_gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
    )
