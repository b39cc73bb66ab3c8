"""`training:`: `transformers.TrainingArguments` by its own names.

Fields that this package sets itself, or cannot honour, are refused with the reason.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raytrain_nlp.config.library_fields import LibraryRemark, read_fields, read_remarks
from raytrain_nlp.errors import Problem, nearest

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "include_inputs_for_metrics": "include_for_metrics: [inputs]",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "no_cuda": "workers.use_gpu",
    "use_mps_device": "workers.use_gpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "fp16_backend": "fp16",
    "adafactor": "optim: adafactor",
    "torchdynamo": "torch_compile_backend",
    "half_precision_backend": "bf16 or fp16",
}
_OURS = {
    "output_dir": "Files go to storage_path/name.",
    "overwrite_output_dir": "Use the flag --overwrite.",
    "logging_dir": "Figures go to MLflow; see tracking.",
    "save_safetensors": "Remove it: everything is saved as safetensors.",
    "deepspeed": "Use the section `deepspeed`.",
    "fsdp": "Use the section `deepspeed`.",
    "fsdp_config": "Use the section `deepspeed`.",
    "parallelism_config": "Use the section `deepspeed`.",
    "use_cpu": "Use workers.use_gpu.",
    "local_rank": "Ray Train sets it.",
    "report_to": "Use the section `tracking`.",
    "run_name": "Use the top-level key `name`.",
    "resume_from_checkpoint": "Use the flag --resume.",
    "enable_jit_checkpoint": "It needs signal handlers, which a Ray worker cannot have; remove it.",
    "ignore_data_skip": "Resuming costs nothing here and is exact; remove it.",
    "auto_find_batch_size": "Use data.global_batch_size with per_device_train_batch_size: auto.",
    "save_only_model": "A checkpoint that cannot be resumed from is not kept; `model/` holds the model.",
    "accelerator_config": "The feed and the loop decide it; remove it.",
    "ddp_backend": "gloo on CPU, NCCL on GPU; see workers.use_gpu.",
    "remove_unused_columns": "Tokens hold only what the model reads; remove it.",
    "length_column_name": "Lengths are known from the tokens; remove it.",
    "dataloader_num_workers": "Ray Data feeds the workers; see data.feed_cpus_per_worker.",
    "dataloader_persistent_workers": "Ray Data feeds the workers; remove it.",
    "dataloader_prefetch_factor": "Ray Data feeds the workers; remove it.",
    "dataloader_multiprocessing_context": "Ray Data feeds the workers; remove it.",
    "dataloader_in_order": "Batches always come in order; remove it.",
    "average_tokens_across_devices": "Losses are always averaged over the global batch; remove it.",
    "logging_nan_inf_filter": "A loss that is not finite always stops the run; remove it.",
    "push_to_hub": "Push `model/` yourself; a run needs no hub token.",
    "hub_token": "Secrets do not belong in a job file; set HF_TOKEN in the environment.",
    "do_train": "`raytrain-nlp train` trains; remove it.",
    "do_eval": "Give data.validation and eval_strategy.",
    "do_predict": "Remove it.",
    "sortish_sampler": "Rows are grouped by length; see train_sampling_strategy.",
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_always_push", "hub_private_repo", "hub_revision"),
        "Push `model/` yourself; a run needs no hub token.",
    ),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "Use the section `tracking`."
    ),
    "disable_tqdm": "The command line shows one live line; remove it.",
    "save_on_each_node": "storage_path is a folder that all nodes share; remove it.",
    "dataloader_pin_memory": "Ray Data feeds the workers; remove it.",
    "label_names": "The labels of a batch are called `labels`; remove it.",
    "bf16_full_eval": "Evaluation computes as training does; use bf16.",
    "fp16_full_eval": "Evaluation computes as training does; use fp16.",
}
MAY_BE_AUTO = ("per_device_train_batch_size", "gradient_checkpointing")
"""Keys that may be `auto`. They are left out of the arguments until the driver has chosen their values."""
PROFILE_STEPS, MOST_PROFILED = "profile_steps", 100
"""A key of this package beside those of `TrainingArguments`: how many steps torch's profiler records; and the most it
may be."""
VERIFY_EVERY, MOST_BETWEEN = "verify_every", 1_000_000
"""Another: every so many steps what the ranks hold and compute is verified; and the most it may be."""
_OWN = {
    PROFILE_STEPS: (MOST_PROFILED, "of steps whose trace is written"),
    VERIFY_EVERY: (MOST_BETWEEN, "of steps from one verified step to the next (0: none is)"),
}
"""Keys of this package -> the most that each may be, and what it is a number of."""
_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "torch_empty_cache_steps",
    "ddp_timeout",
    "eval_accumulation_steps",
)
_NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "adam_epsilon",
    "neftune_noise_alpha",
    "eval_delay",
)
_BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
"""Fields that must be at least 0 and below 1."""


def check_training(training: dict[str, Any], where: str = "training") -> tuple[dict[str, Any], list[Problem]]:
    """Validate the section against the types of `TrainingArguments`.

    Returns:
        The values, converted to those types, and a problem for each key or value that transformers or this package does
            not accept.
    """
    fields = training_fields()
    values, problems = {}, []
    for key, value in training.items():
        at = f"{where}.{key}"
        if key in MAY_BE_AUTO and value == "auto":
            continue
        if key in _OWN:
            problems += _check_own(at, value, *_OWN[key])
            continue
        if key in RENAMED:
            problems.append(Problem(at, "was removed from transformers", f"Use {RENAMED[key]}."))
        elif key in _OURS:
            problems.append(Problem(at, "is not set here", _OURS[key]))
        elif key not in fields:
            problems.append(
                Problem(
                    at,
                    "unknown key",
                    nearest(key, [*fields, *_OWN]) or "See transformers.TrainingArguments for the valid names.",
                )
            )
        else:
            if value is False and "strategy" in key:
                value = "no"  # YAML reads a bare `no` as false
            try:
                values[key] = fields[key].validate_python(value)
            except ValidationError as error:
                problems.append(Problem(at, f"is wrong ({value!r}): {error.errors()[0]['msg']}", "Correct the value."))
            else:
                problems += (
                    [Problem(at, f"{wrong} ({value!r})", "Correct the value.")]
                    if (wrong := _wrong_number(key, value, values[key]))
                    else []
                )
    return values, problems


def _check_own(at: str, value: Any, most: int, of_what: str) -> list[Problem]:
    if type(value) is int and 0 <= value <= most:
        return []
    what = f"should be a whole number from 0 to {most}, {of_what} ({value!r})"
    return [Problem(at, what, "Correct the value.")]


def _wrong_number(key: str, given: Any, value: Any) -> str | None:
    """What is wrong with a number of the right type, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(given, bool):
        return "should be a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "should be a finite number"
    if key in _POSITIVE and value <= 0:
        return "must be above 0"
    if key in ("logging_steps", "eval_steps", "save_steps") and value > 1 and value != int(value):
        return "must be a whole number, or a share of all steps below 1"
    if key in _BELOW_ONE and not 0 <= value < 1:
        return "must be at least 0 and below 1"
    return "must not be below 0" if key in _NOT_NEGATIVE and value < 0 else None


@functools.cache
def training_fields() -> dict[str, TypeAdapter[Any]]:
    """Type of every field of the installed `TrainingArguments` and `Seq2SeqTrainingArguments`, by name."""
    names = {"DebugOption": str, "ParallelismConfig": Any}
    return (
        read_fields("transformers", "training_args.py", "TrainingArguments", enums=["trainer_utils.py"], names=names)
        | generation_fields()
    )


@functools.cache
def generation_fields() -> dict[str, TypeAdapter[Any]]:
    """The fields that only `Seq2SeqTrainingArguments` has."""
    return read_fields(
        "transformers",
        "training_args_seq2seq.py",
        "Seq2SeqTrainingArguments",
        names={"Path": str, "GenerationConfig": dict},
    )


def refusal(name: str) -> str | None:
    """What to do instead of setting this field of `TrainingArguments` in a job; None where a job may set it."""
    return _OURS.get(name)


def refusals() -> dict[str, str]:
    """Each field of `TrainingArguments` that a job may not set -> what to do instead."""
    return {name: todo for name, todo in _OURS.items() if name in training_fields()}


@functools.cache
def training_remarks() -> dict[str, LibraryRemark]:
    """The default and help that transformers gives each field, by name."""
    return {
        **read_remarks("transformers", "training_args.py", "TrainingArguments"),
        **read_remarks("transformers", "training_args_seq2seq.py", "Seq2SeqTrainingArguments"),
    }
