"""The `TrainingArguments` of a job, from all of its sections, and what these contradict each other about."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, STAGE
from raytrain_nlp.config.deepspeed import apply_deepspeed_config
from raytrain_nlp.config.deepspeed_keys import check_keys
from raytrain_nlp.config.hardware import check_hardware
from raytrain_nlp.config.job.batches import check_batches, check_streaming, count_micro_batches
from raytrain_nlp.config.job.elastic import check_elastic
from raytrain_nlp.config.job.evaluation import check_evaluation, check_smoothing
from raytrain_nlp.config.job.preferences import check_preferences
from raytrain_nlp.config.job.repeated import apply_generation, check_repeated
from raytrain_nlp.config.job.verified import check_verified
from raytrain_nlp.config.lora import check_lora
from raytrain_nlp.config.mixture import check_steps
from raytrain_nlp.config.training import check_training
from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


class Resolved(NamedTuple):
    """What a job's sections say together."""

    values: dict[str, Any]
    """Name of a field of `TrainingArguments` -> its value."""
    auto: frozenset[str]
    """Keys of `config.auto.FITTED` that the memory planner is to choose."""
    problems: list[Problem]
    """Everything that is wrong with the job as far as its file tells, without a look at data, models or the cluster."""


def resolve_arguments(job: TrainJob) -> Resolved:
    """The arguments of training that follow from all sections of a job, and the contradictions between them."""
    values, problems = check_training(job.training)
    problems += check_repeated(job, values) + apply_generation(job, values)
    problems += check_lora(job.lora) if job.lora is not None else []
    if job.deepspeed.config is not None:
        problems += check_keys(job.deepspeed.config)
        problems += apply_deepspeed_config(job.deepspeed.config, values, job.workers.num_workers)
    auto = frozenset(_find_auto(job, values))
    values = _with_defaults(job, values)
    problems += [
        Problem("tracking.report_to", f"needs {name}, which is not installed", f"pip install {name}.")
        for name in job.tracking.report_to
        if importlib.util.find_spec(name) is None
    ]
    problems += (
        check_elastic(job)
        + check_streaming(job, values)
        + check_steps(job.data.mixture, values.get("max_steps", -1))
        + check_batches(job, values)
        + check_evaluation(job, values)
        + check_hardware(job, values)
        + check_smoothing(job, values)
        + check_preferences(job, values)
        + check_verified(job, values)
    )
    if job.data.global_batch_size and "per_device_train_batch_size" not in values:
        values["per_device_train_batch_size"] = -(-job.data.global_batch_size // count_micro_batches(job, values))
    values.setdefault("per_device_train_batch_size", 8)
    # a problem with a key of `workers` that the machine will choose is looked for again once it has been chosen
    return Resolved(
        values, auto, [problem for problem in problems if not any(key in problem.what for key in job.workers.auto)]
    )


def _find_auto(job: TrainJob, values: dict[str, Any]) -> Iterator[str]:
    """The keys that the memory planner is to choose.

    Args:
        values: the job's `TrainingArguments` by name, with those that a DeepSpeed JSON sets. Such a file leaves open
            only what is `auto` in it.
    """
    ours = job.workers.use_gpu and job.deepspeed.config is None
    if job.deepspeed.auto or (ours and "zero_stage" not in job.deepspeed.model_fields_set):
        yield STAGE
    settled = {"per_device_train_batch_size", "gradient_accumulation_steps"} & values.keys()
    asked = job.training.get("per_device_train_batch_size") == "auto"
    if job.data.global_batch_size and not settled and (asked or ours):
        yield ACCUMULATION
    asked = job.training.get("gradient_checkpointing") == "auto"
    if asked and "gradient_checkpointing" not in values and not values.get("activation_checkpointing"):
        yield CHECKPOINTING


def _with_defaults(job: TrainJob, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments with those of `checkpoint:`, and this package's defaults for the ones that the job leaves out."""
    values = {**job.checkpoint.model_dump(exclude_none=True), **values}
    values.setdefault("seed", job.seed)
    values.setdefault("logging_steps", 10)
    values.setdefault("logging_first_step", True)
    values.setdefault("train_sampling_strategy", "group_by_length")
    by_steps = "eval_steps" in values
    values.setdefault("eval_strategy", "no" if job.data.validation is None else "steps" if by_steps else "epoch")
    values.setdefault(
        "save_strategy", "steps" if "save_steps" in values else values["eval_strategy"] if by_steps else "epoch"
    )
    if job.early_stopping:
        values.setdefault("load_best_model_at_end", True)
    return values
