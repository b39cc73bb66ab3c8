"""What a job with `training.verify_every` must leave alone, because gradients of it cannot be computed twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.training import VERIFY_EVERY
from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob

_IN_BACKWARD = ("lomo", "adalomo")
_REENTRANT = "use_reentrant: false"


def check_verified(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """A problem for each key that excludes `training.verify_every`, where the job asks for it.

    Args:
        values: the job's `TrainingArguments` by name.
    """
    if not job.training.get(VERIFY_EVERY):
        return []
    found = []
    if job.workers.use_gpu and not values.get("full_determinism"):
        found.append(
            (
                "needs kernels that compute the same bits twice, which with workers.use_gpu are not all",
                "Set training.full_determinism: true.",
            )
        )
    if values.get("torch_compile"):
        found.append(("excludes training.torch_compile: the second pass is not compiled", "Remove one of them."))
    if _reentrant(job, values):
        found.append(
            (
                "excludes reentrant gradient checkpointing, which cannot compute gradients without keeping them",
                f"Set training.gradient_checkpointing_kwargs: {{{_REENTRANT}}}, or remove one of them.",
            )
        )
    optimizer = str(values.get("optim", ""))
    if optimizer in _IN_BACKWARD or optimizer.endswith("_layerwise"):
        found.append((f"excludes optim: {optimizer}, which updates weights in the backward pass", "Choose another."))
    zero = (job.deepspeed.config or {}).get("zero_optimization") or {}
    for part in ("offload_param", "offload_optimizer"):
        if isinstance(zero.get(part), dict) and zero[part].get("device") == "nvme":
            found.append((f"excludes {part} to nvme, where nothing can be compared in memory", "Use device: cpu."))
    return [Problem(f"training.{VERIFY_EVERY}", what, todo) for what, todo in found]


def _reentrant(job: TrainJob, values: dict[str, Any]) -> bool:
    if not (values.get("gradient_checkpointing") or values.get("activation_checkpointing")):
        return False
    given = values.get("gradient_checkpointing_kwargs") or values.get("activation_checkpointing_kwargs")
    if isinstance(given, dict):
        return bool(given.get("use_reentrant"))
    return job.lora is not None and job.deepspeed.zero_stage == 3  # what `worker.arguments` then chooses
