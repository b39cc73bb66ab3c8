"""The jobs of a certificate: the first steps of a job, in a folder of their own; the same under another name; and the
same on another number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain_nlp.config import TrainJob, load_job, plain_values

_LEFT_OUT = {
    *("save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    *("num_train_epochs", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "profile_steps"),
    *("logging_strategy", "logging_first_step"),
}
CHANGED = (
    "training.max_steps, and so the schedule of the learning rate; when checkpoints are saved, evaluations made and "
    "figures logged; no early stopping, no best model; figures go to no tracker outside of the folder"
)
"""What the runs of a certificate do not have from their job."""
LEAST_STEPS = 6
RESTARTS = 3


@dataclass(frozen=True)
class Shape:
    """When the runs of a certificate save, evaluate and end."""

    steps: int

    @property
    def save(self) -> int:
        """Updates between two checkpoints: three are committed."""
        return self.steps // 3

    @property
    def evaluate(self) -> int:
        """Updates between two evaluations."""
        return self.steps // 2


def first_steps(job: TrainJob, name: str, storage: str, shape: Shape) -> dict[str, Any]:
    """The sections of a run of the first steps."""
    values = plain_values(job)
    training = {key: value for key, value in values.get("training", {}).items() if key not in _LEFT_OUT}
    evaluates = job.data.validation is not None
    training |= {"max_steps": shape.steps, "logging_steps": 1, "eval_strategy": "steps" if evaluates else "no"}
    training |= {"eval_steps": shape.evaluate} if evaluates else {}
    return {
        **{key: value for key, value in values.items() if key not in ("early_stopping", "tracking")},
        "name": name,
        "storage_path": storage,
        "training": training,
        "checkpoint": {"save_strategy": "steps", "save_steps": shape.save},
        "workers": {**values.get("workers", {}), "max_failures": RESTARTS},
    }


def renamed(settled: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same job under another name.

    Args:
        settled: the job of a run as its record has it, with the values that were chosen for it.
    """
    return {**settled, "name": name}


def at_workers(settled: Mapping[str, Any], name: str, count: int) -> dict[str, Any]:
    """The same job on `count` workers, with the same global batches."""
    job = load_job(settled)
    again = job.at_size(count)
    training = {
        key: value
        for key, value in settled["training"].items()
        if key not in ("per_device_train_batch_size", "gradient_accumulation_steps")
    }
    data = dict(settled["data"])
    if job.global_batch_size is not None:
        data["global_batch_size"] = job.global_batch_size
        training["gradient_accumulation_steps"] = again.gradient_accumulation_steps
    elif (accumulation := settled["training"].get("gradient_accumulation_steps")) is not None:
        training["gradient_accumulation_steps"] = accumulation
    workers = {**settled["workers"], "num_workers": count}
    return {**settled, "name": name, "training": training, "data": data, "workers": workers}
