"""What a job adds to the plain loop: the user's `Trainer`, callbacks and metrics, early stopping, the event log."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer, TrainerCallback

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.trainer.override_check import check_overrides
from raytrain_nlp.trainer.trainer import build_trainer_class
from raytrain_nlp.trainer.training_step import Feed, users_classes
from raytrain_nlp.trainer.verify.stragglers import StragglerCallback
from raytrain_nlp.user_code import UserObject
from raytrain_nlp.worker.callbacks import EventCallback
from raytrain_nlp.worker.node_load import LoadOfNode
from raytrain_nlp.worker.spec import WorkerSpec

_FUNCTIONS = ("compute_loss_func", "preprocess_logits_for_metrics")
"""Arguments of `Trainer.__init__` that the section names."""


def find_trainer_class(job: TrainJob, task: Task, folder: str) -> type[Trainer]:
    """The user's subclass of `Trainer`, or Hugging Face's own. Raises `InputError` for what is none."""
    base = Seq2SeqTrainer if task.generates else Trainer
    if job.trainer.class_ is None:
        return base
    found = UserObject(job.trainer.class_, "trainer.class", folder).load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(
            Problem(
                "trainer.class",
                f"is no subclass of transformers.{base.__name__} ({job.trainer.class_})",
                f"Derive it from {base.__name__}.",
            )
        )
    return found


def find_user_function(job: TrainJob, key: str, folder: str) -> Callable[..., Any] | None:
    """What the job names as `trainer.KEY`, or None."""
    name = getattr(job.trainer, key)
    return UserObject(name, f"trainer.{key}", folder).load() if name else None


def find_callbacks(job: TrainJob, folder: str) -> list[tuple[type[TrainerCallback], dict[str, Any]]]:
    """The user's callback classes, and what each is made with. Raises `InputError` for what is none."""
    found = []
    for config in job.trainer.callback_configs():
        cls = UserObject(config.class_, "trainer.callbacks", folder).load()
        if not (isinstance(cls, type) and issubclass(cls, TrainerCallback)):
            raise InputError(
                Problem(
                    "trainer.callbacks",
                    f"is no subclass of transformers.TrainerCallback ({config.class_})",
                    "Derive it from TrainerCallback.",
                )
            )
        if wrong := wrong_arguments(cls, config.arguments):
            raise InputError(
                Problem(
                    "trainer.callbacks",
                    f"cannot be made: {config.class_} {wrong}",
                    "Correct `arguments` or its __init__.",
                )
            )
        found.append((cls, config.arguments))
    return found


def wrong_arguments(cls: type, arguments: dict[str, Any]) -> str | None:
    """Why a class cannot be made with these keyword arguments, or None."""
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        return f"with {', '.join(sorted(arguments)) or 'no arguments'}: {error}"
    except ValueError:  # no signature to be had
        return None
    return None


def build_callbacks(
    job: TrainJob, spec: WorkerSpec, events: EventLog, paths: RunPaths, rank: int, local_rank: int
) -> list[TrainerCallback]:
    """The callbacks of one rank."""
    callbacks: list[TrainerCallback] = []
    if rank == 0:
        callbacks.append(EventCallback(events, paths.progress, paths.nodes, spec.total_steps))
    elif local_rank == 0 and paths.store.shared:
        callbacks.append(LoadOfNode(paths.nodes, rank))
    if job.workers.num_workers > 1:
        callbacks.append(StragglerCallback(events, rank))
    if job.early_stopping:
        callbacks.append(EarlyStoppingCallback(**job.early_stopping.model_dump()))
    return callbacks + [cls(**arguments) for cls, arguments in find_callbacks(job, spec.code_folder)]


def ended_early(callbacks: list[TrainerCallback], state: Any, total_steps: int) -> str | None:
    """Why training has ended before its last step; None if it has not."""
    if state.global_step >= total_steps:
        return None
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            tries = callback.early_stopping_patience
            if callback.early_stopping_patience_counter >= tries:
                return (
                    f"after step {state.global_step} of {total_steps}: early_stopping, no better evaluation in {tries} "
                    f"(best: step {state.best_global_step})"
                )
    return f"after step {state.global_step} of {total_steps}: a callback of the job stopped training"


def build_trainer(
    job: TrainJob, folder: str, feed: Feed, model: Any, arguments: Any, tokenizer: Any, callbacks: list[TrainerCallback]
) -> Any:
    """The run's trainer: the user's class, or Hugging Face's own, on our feed."""
    functions, loaders = {key: find_user_function(job, key, folder) for key in _FUNCTIONS}, feed.eval_loaders
    return build_trainer_class(find_trainer_class(job, feed.task, folder))(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=feed.train_rows,
        eval_dataset={name: loader.dataset for name, loader in loaders.items()}
        if loaders.keys() - {""}
        else loaders[""].dataset
        if loaders
        else None,
        compute_metrics=feed.figures,
        callbacks=callbacks,
        **{key: value for key, value in functions.items() if value is not None},
        **job.trainer.arguments,
        feed=feed,
    )


def check_user_code(job: TrainJob, task: Task, folder: str) -> list[Problem]:
    """What is wrong with the user's code, as far as importing it tells; for the driver, before a worker starts."""
    problems, found = [], {}
    finds: dict[str, Callable[[], Any]] = {
        "class": lambda: find_trainer_class(job, task, folder),
        "callbacks": lambda: find_callbacks(job, folder),
    }
    finds |= {key: functools.partial(find_user_function, job, key, folder) for key in ("compute_metrics", *_FUNCTIONS)}
    for key, find in finds.items():
        try:
            found[key] = find()
        except InputError as error:
            problems += error.problems
    if "class" in found:
        functions = [key for key in _FUNCTIONS if getattr(job.trainer, key)]
        problems += check_overrides(found["class"], job.trainer.arguments, functions, job.deepspeed.enabled)
        owner = next((cls for cls in users_classes(found["class"]) if "training_step" in vars(cls)), None)
        if job.verify_every and owner is not None:
            what = f"excludes the training_step of {owner.__name__}, whose gradients cannot be computed twice"
            problems.append(Problem("training.verify_every", what, "Override compute_loss, or remove the key."))
    return problems + _check_batch_metrics(job, found.get("compute_metrics"))


def _check_batch_metrics(job: TrainJob, compute_metrics: Any) -> list[Problem]:
    if not job.arguments().get("batch_eval_metrics"):
        return []
    if job.trainer.compute_metrics is None and job.trainer.class_ is None:
        return [
            Problem(
                "training.batch_eval_metrics",
                "needs a function that sees one batch after the other",
                "Name it as trainer.compute_metrics.",
            )
        ]
    if compute_metrics is not None and "compute_result" not in inspect.signature(compute_metrics).parameters:
        what = f"needs an argument `compute_result` with training.batch_eval_metrics ({job.trainer.compute_metrics})"
        return [
            Problem("trainer.compute_metrics", what, "Add it: True says that the result of all batches is asked for.")
        ]
    return []
