"""Preference data: what `task`, `lora`, `data`, `training` and `trainer` must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.lora import keeps_base
from raytrain_nlp.config.tasks.preference import Pairs, Preference
from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


def check_preferences(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of jobs whose loss is that of preferences.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    task = job.task
    if not isinstance(task, Pairs):
        return []
    problems = []
    if factor := values.get("label_smoothing_factor"):
        what = f"is for losses over classes or tokens, which {task.type} has not ({factor:g})"
        problems.append(Problem("training.label_smoothing_factor", what, "Remove it; see task.label_smoothing."))
    if job.trainer.compute_loss_func:
        what = f"would get logits of two sequences a row: the loss of {task.type} is the task's own"
        problems.append(
            Problem("trainer.compute_loss_func", what, "Remove it, or override compute_loss in trainer.class.")
        )
    if isinstance(task, Preference) and task.has_reference:
        problems += _check_reference(job, task)
    return problems


def _check_reference(job: TrainJob, task: Preference) -> list[Problem]:
    asked, kept = task.precompute_ref_log_probs, job.lora is not None and keeps_base(job.lora)
    if asked is False and not kept:
        why = "bias or init_lora_weights change the base model" if job.lora is not None else "there is no lora"
        what = f"false needs an adapter without which the model is the reference, and {why}"
        return [Problem("task.precompute_ref_log_probs", what, "Remove it: no second model is held.")]
    if job.data.streaming and (asked or not kept):
        what = "excludes log-probabilities of a reference model, which are computed of all rows before training"
        return [Problem("data.streaming", what, "Remove it, or train with `lora`.")]
    return []
