"""`TrainingArguments` and the DeepSpeed dictionary of one worker. Built before the model: that is what switches ZeRO-3 on."""

from __future__ import annotations

import sys
from typing import Any

from raytrain_nlp.config.cluster import DeepSpeedConfig
from raytrain_nlp.errors import InputError, Problem

_CPU_BUCKET_MB = 256


def build_arguments(values: dict[str, Any], deepspeed: DeepSpeedConfig, use_gpu: bool, output_dir: str) -> Any:
    """The worker's `TrainingArguments`.

    Args:
        values: `TrainJob.arguments()`.
        output_dir: node-local scratch; nothing of value is written there.
    """
    from transformers import TrainingArguments

    try:
        return TrainingArguments(
            **{
                # on CPU gloo and the backward pass share the cores: nothing overlaps, and one bucket costs least
                **({} if use_gpu else {"ddp_bucket_cap_mb": _CPU_BUCKET_MB}),
                **values,
                "output_dir": output_dir,
                "use_cpu": not use_gpu,  # without it every CPU rank believes in a world of one
                "deepspeed": build_deepspeed(deepspeed, use_gpu) if deepspeed.zero_stage else None,
                "report_to": [],
                "disable_tqdm": True,
                "logging_nan_inf_filter": False,  # a NaN must not be hidden: the trainer stops at it
                "remove_unused_columns": False,
                "save_total_limit": None,  # our own retention knows committed checkpoints from others
            }
        )
    except (ValueError, TypeError) as error:
        raise InputError(Problem("training", f"transformers refuses it: {str(error).splitlines()[0]}", "Correct the section.")) from error


def build_deepspeed(section: DeepSpeedConfig, use_gpu: bool) -> dict[str, Any]:
    """The DeepSpeed configuration of a job. "auto" is filled by Hugging Face from `TrainingArguments`."""
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
        "zero_force_ds_cpu_optimizer": False,  # torch's Adam: bit-exact, and no compiler at start
        "steps_per_print": 10**9,
    }


def apply_deepspeed_environment(use_gpu: bool) -> None:
    """Make DeepSpeed join the process group Ray Train made, without compiling anything on CPU.

    Must run before `from_pretrained`: `deepspeed.zero.Init` otherwise assumes a world of one.
    """
    deepspeed = _import_deepspeed()
    if not use_gpu:
        # only the inference all-reduce uses this op, but its first use would run g++ for over a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", verbose=False)


def _import_deepspeed() -> Any:
    """DeepSpeed without its autotuner's optional `import mlflow`, which costs each worker over a second and is used by none."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # an import of it then fails like that of a package that is not installed
    try:
        import deepspeed
    finally:
        if absent:
            del sys.modules["mlflow"]
    return deepspeed
