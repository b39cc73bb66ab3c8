"""Keys of other sections that `training` has too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.tasks.seq2seq import Seq2Seq
from raytrain_nlp.config.training import generation_fields
from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


def check_repeated(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of keys that stand in their own section and under `training` too, with another value.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    problems = [
        Problem(
            f"checkpoint.{key}",
            f"stands under `training` too, with another value ({value} and {job.training[key]})",
            "Keep one.",
        )
        for key, value in job.checkpoint.model_dump(exclude_none=True).items()
        if values.get(key, value) != value
    ]
    if values.get("seed", job.seed) != job.seed and "seed" in job.model_fields_set:
        problems.append(
            Problem("training.seed", f"differs from the top-level seed ({values['seed']} and {job.seed})", "Keep one.")
        )
    return problems


def apply_generation(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Set the arguments of generation that a task implies; returns the problems of those that the job sets itself.

    Args:
        values: the job's `TrainingArguments` by name; changed in place.
    """
    if isinstance(job.task, Seq2Seq):
        beams = values.setdefault("generation_num_beams", job.task.num_beams)
        if job.task.num_beams not in (None, beams):
            what = f"differs from training.generation_num_beams ({job.task.num_beams} and {beams})"
            return [Problem("task.num_beams", what, "Keep one.")]
        values.setdefault("predict_with_generate", True)
        values.setdefault("generation_max_length", job.task.val_max_target_length or job.task.max_target_length)
        return []
    return [
        Problem(f"training.{key}", f"is not for {job.task.type}, which generates nothing", "Remove it.")
        for key in generation_fields()
        if key in values
    ]
