"""What a job adds to the plain loop: the user's `Trainer`, callbacks and metrics, early stopping, the event log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer, TrainerCallback

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.user_code import UserObject
from raytrain_nlp.worker.callbacks import EventCallback
from raytrain_nlp.worker.spec import WorkerSpec


def find_trainer_class(job: TrainJob, task: Task, folder: str) -> type[Trainer]:
    """The user's subclass of `Trainer`, or Hugging Face's own. Raises `InputError` for what is none."""
    base = Seq2SeqTrainer if task.generates else Trainer
    if job.trainer.class_ is None:
        return base
    found = UserObject(job.trainer.class_, "trainer.class", folder).load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(Problem("trainer.class", f"is no subclass of transformers.{base.__name__} ({job.trainer.class_})", f"Derive it from {base.__name__}."))
    return found


def find_user_metrics(job: TrainJob, folder: str) -> Callable[[Any], dict[str, float]] | None:
    """The user's `compute_metrics`, or None."""
    return UserObject(job.trainer.compute_metrics, "trainer.compute_metrics", folder).load() if job.trainer.compute_metrics else None


def find_callbacks(job: TrainJob, folder: str) -> list[type[TrainerCallback]]:
    """The user's callback classes. Raises `InputError` for what is none."""
    found = []
    for name in job.trainer.callbacks:
        cls = UserObject(name, "trainer.callbacks", folder).load()
        if not (isinstance(cls, type) and issubclass(cls, TrainerCallback)):
            raise InputError(Problem("trainer.callbacks", f"is no subclass of transformers.TrainerCallback ({name})", "Derive it from TrainerCallback."))
        found.append(cls)
    return found


def build_callbacks(job: TrainJob, spec: WorkerSpec, events: EventLog, progress: Path, is_first: bool) -> list[TrainerCallback]:
    """The callbacks of one rank."""
    callbacks: list[TrainerCallback] = [EventCallback(events, progress, spec.total_steps)] if is_first else []
    if job.early_stopping:
        callbacks.append(EarlyStoppingCallback(**job.early_stopping.model_dump()))
    return callbacks + [cls() for cls in find_callbacks(job, spec.code_folder)]


def check_user_code(job: TrainJob, task: Task, folder: str) -> list[Problem]:
    """What is wrong with the user's code, as far as importing it tells; for the driver, before a worker starts."""
    problems = []
    for find in (lambda: find_trainer_class(job, task, folder), lambda: find_callbacks(job, folder), lambda: find_user_metrics(job, folder)):
        try:
            find()
        except InputError as error:
            problems += error.problems
    return problems
