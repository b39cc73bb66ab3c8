"""The rows of one optimizer update: what `data`, `training` and `workers` must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


def count_micro_batches(job: TrainJob, values: dict[str, Any]) -> int:
    """Micro-batches of one optimizer update, over all workers.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    return max(values.get("gradient_accumulation_steps", 1), 1) * job.workers.num_workers


def check_batches(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of the keys that decide how many rows one optimizer update sees, and in which order.

    Args:
        values: the job's `TrainingArguments` by name, with the defaults of this package.
    """
    per_device, total = values.get("per_device_train_batch_size"), job.data.global_batch_size
    parts = count_micro_batches(job, values)
    if per_device and total and per_device * parts != total:
        accumulation = values.get("gradient_accumulation_steps", 1)
        return [
            Problem(
                "data.global_batch_size",
                f"contradicts per_device_train_batch_size x gradient_accumulation_steps x num_workers ({total} and "
                f"{per_device} x {accumulation} x {job.workers.num_workers} = {per_device * parts})",
                "Remove training.per_device_train_batch_size or correct one of them.",
            )
        ]
    asked = job.training.get("per_device_train_batch_size") == "auto"
    if asked and not per_device and not total and not job.data.batch_tokens:
        what = "is auto, and without data.global_batch_size the rows of a step would depend on the machine"
        return [Problem("training.per_device_train_batch_size", what, "Set data.global_batch_size.")]
    if (per_device or asked) and job.data.batch_tokens:
        return [Problem("data.batch_tokens", "excludes training.per_device_train_batch_size", "Keep one.")]
    if values["train_sampling_strategy"] not in ("random", "sequential", "group_by_length"):
        strategy = values["train_sampling_strategy"]
        return [
            Problem(
                "training.train_sampling_strategy",
                f"is not supported ({strategy!r})",
                "Use random, sequential or group_by_length.",
            )
        ]
    return []


def check_streaming(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of keys that need all training rows, while `data.streaming` never has them together.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    if not job.data.streaming:
        return []
    problems = []
    if values.get("max_steps", -1) <= 0:
        problems.append(
            Problem(
                "data.streaming",
                "needs training.max_steps: how many rows there are is not known before",
                "Set training.max_steps.",
            )
        )
    if job.data.drop_duplicates:
        todo = "Remove it, or data.streaming."
        problems.append(Problem("data.drop_duplicates", "needs all rows, and data.streaming has a part of them", todo))
    if job.data.max_train_rows:
        problems.append(
            Problem(
                "data.max_train_rows", "excludes data.streaming", "Remove it; training.max_steps says how much is read."
            )
        )
    if values.get("dataloader_drop_last"):
        problems.append(
            Problem("training.dataloader_drop_last", "excludes data.streaming, which keeps every row", "Remove it.")
        )
    return problems
