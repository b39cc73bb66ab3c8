"""The loss of a task whose model does not compute it, as one rank needs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.lora import keeps_base
from raytrain_nlp.data.split import SplitSpec
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from raytrain_nlp.trainer.objective.own_loss import OwnLoss


def build_own_loss(
    spec: WorkerSpec, job: TrainJob, paths: RunPaths, task: Task, events: EventLog, loaders: tuple[Any, dict[str, Any]]
) -> OwnLoss | None:
    """The loss, with what the reference model says of all rows where that is to be computed before training; the
    loaders then give it with the rows. None for tasks whose model computes the loss.
    """
    from raytrain_nlp.trainer.objective.own_loss import OwnLoss
    from raytrain_nlp.trainer.objective.reference import Reference

    objective = task.build_objective()
    if objective is None or not task.precomputes_reference(job.lora):
        return OwnLoss(objective) if objective else None
    assert isinstance(spec.train, SplitSpec), "the driver refuses streamed rows"
    train, validations = loaders
    named = spec.named_validations or ({"": spec.validation} if spec.validation else {})
    splits = {"train": spec.train, **{_of(name): part for name, part in named.items()}}
    kept = keeps_base(job.lora or {})
    reference = Reference(
        paths.reference, paths.store, splits, share_of(job), kept, lambda line: events.write("notice", text=line)
    )
    train.feed.beside = reference.beside("train")
    for name, loader in validations.items():
        loader.beside = reference.beside(_of(name))
    return OwnLoss(objective, reference)


def leaves_out_logits(job: TrainJob, task: Task) -> bool:
    """May the loss be computed without logits? One that the task computes, outside of the model, not under DDP: that
    looks for unused parameters in what the model returns.
    """
    inside = task.build_objective() is None or job.deepspeed.enabled or job.workers.num_workers == 1
    return job.chunks_loss and task.scores_tokens and inside


def share_of(job: TrainJob) -> Any:
    """This rank's `trainer.loader.Share`."""
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    return {"world_size": size, "rank": rank, "cpus": job.data.feed_cpus_per_worker}


def _of(name: str) -> str:
    return f"validation-{name}" if name else "validation"
