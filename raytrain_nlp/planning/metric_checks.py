"""Checks that the metric which chooses the best model is among the metrics that an evaluation will give, before
anything is started.
"""

from __future__ import annotations

import fnmatch
import inspect

from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.tasks import build_task

ALWAYS = ("loss", "runtime", "samples", "samples_per_second", "steps_per_second")
"""Metrics that `Trainer` gives for every evaluation, without `eval_`."""
_LOWER = ("loss", "perplexity", "mse", "gen_len", "runtime")
"""Metrics for which lower is better."""
_WHERE = "training.metric_for_best_model"


def known_metrics(job: TrainJob, labels: list[str] | None = None) -> list[str]:
    """The names of the metrics of an evaluation without `eval_`, as patterns of `fnmatch` where they depend on classes.

    Args:
        labels: the names of the classes; None while they are not known.
    """
    names = [*build_task(job.task).metric_names(labels), *ALWAYS]
    return [f"{found}_{name}" if found else name for found in job.data.validation_sets() or [""] for name in names]


def _is_among(name: str, known: list[str]) -> bool:
    return name in known or any("*" in pattern and fnmatch.fnmatchcase(name, pattern) for pattern in known)


def check_metrics(job: TrainJob, labels: list[str] | None = None) -> list[Problem]:
    """A problem if `metric_for_best_model` is not among the metrics of an evaluation, or if transformers would take the
    worst model for the best one because `greater_is_better` is not set.
    """
    values = job.arguments()
    metric = values.get("metric_for_best_model")
    if metric is None or values["eval_strategy"] == "no" or not _is_read(job):
        return []
    if problems := check_objective(job, metric, _WHERE, labels):
        return problems
    name, known = metric.removeprefix("eval_"), known_metrics(job, labels)
    if (
        _is_among(name, known)
        and is_lower(job, name)
        and "greater_is_better" not in values
        and not name.endswith("loss")
    ):
        what = f"is better when it is lower, which transformers takes of names that end with 'loss' only ({metric!r})"
        return [Problem(_WHERE, what, "Set training.greater_is_better: false.")]
    return []


def check_objective(job: TrainJob, metric: str, where: str, labels: list[str] | None = None) -> list[Problem]:
    """A problem if a metric is not among those of an evaluation. None if the user's own code computes metrics, as their
    names are not known in advance.

    Args:
        metric: its name, with or without `eval_`.
        where: the key of the job that names it.
    """
    name, known = metric.removeprefix("eval_"), known_metrics(job, labels)
    if _is_among(name, known) or _own_figures(job):
        return []
    hint = nearest(name, known) or f"This task gives {', '.join(known)}; trainer.compute_metrics may give others."
    return [Problem(where, f"no evaluation gives it ({metric!r})", hint)]


def notes_on_metrics(job: TrainJob) -> list[str]:
    """Doubts about the metric of the best model, a line each: the user's own code does not seem to compute it, or the
    job asks for the worst value.
    """
    values = job.arguments()
    metric, notes = values.get("metric_for_best_model"), []
    if metric is None or values["eval_strategy"] == "no" or not _is_read(job):
        return []
    name = metric.removeprefix("eval_")
    if not _is_among(name, known_metrics(job)) and _own_figures(job) and not _mentions(job, name):
        notes.append(f"{_WHERE}: your code does not seem to give {metric!r}; the first evaluation ends the run then.")
    if _is_among(name, known_metrics(job)) and values.get("greater_is_better") is is_lower(job, name):
        notes.append(
            f"training.greater_is_better is {str(values['greater_is_better']).lower()}, so that the worst {name} is "
            f"taken for the best model."
        )
    return notes


def is_lower(job: TrainJob, name: str) -> bool:
    """Is a metric (without `eval_`) better if it is lower?"""
    return any(
        name == (f"{found}_{lower}" if found else lower)
        for found in job.data.validation_sets() or [""]
        for lower in _LOWER
    )


def _is_read(job: TrainJob) -> bool:
    """Does the job use `metric_for_best_model` for anything, or set it itself?"""
    values = job.arguments()
    return bool(
        values.get("load_best_model_at_end")
        or job.early_stopping
        or values.get("save_strategy") == "best"
        or values.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
        or "metric_for_best_model" in job.training
    )


def _own_figures(job: TrainJob) -> bool:
    """Can code of the user's own compute metrics?"""
    return job.trainer.compute_metrics is not None or job.trainer.class_ is not None


def _mentions(job: TrainJob, name: str) -> bool:
    """Does the source of the user's code contain the name of the metric? True if the source cannot be read."""
    import os

    from raytrain_nlp.user_code import UserObject

    for where, given in (
        ("trainer.compute_metrics", job.trainer.compute_metrics),
        ("trainer.class", job.trainer.class_),
    ):
        try:
            module = inspect.getmodule(UserObject(given, where, os.getcwd()).load()) if given else None
            if given and (module is None or name in inspect.getsource(module)):
                return True
        except (InputError, OSError, TypeError):
            return True  # reported by other checks, or has no source
    return False
