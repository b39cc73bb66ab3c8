"""Evaluations and labels: what `training`, `data`, `early_stopping` and `task` must agree on."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.tasks.question import QuestionAnswering
from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.errors import Problem

if TYPE_CHECKING:
    from raytrain_nlp.config.job import TrainJob


def check_evaluation(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of evaluations and of the best checkpoint. Sets `eval_steps` and `metric_for_best_model` where they are
    needed and missing.

    Args:
        values: the job's `TrainingArguments` by name, with the defaults of this package; changed in place.
    """
    problems = []
    evaluates = values["eval_strategy"] != "no"
    if job.data.validation is None and evaluates:
        problems.append(
            Problem(
                "training.eval_strategy",
                f"is '{values['eval_strategy']}' but data.validation is missing",
                "Add data.validation.",
            )
        )
    if values["eval_strategy"] == "steps":
        values.setdefault("eval_steps", values["logging_steps"])
    if values.get("load_best_model_at_end"):
        problems += _check_best_model(job, values)
    if values.get("prediction_loss_only") and isinstance(job.task, SentenceSimilarity) and job.task.compares_rows:
        what = f"leaves out the vectors, of which the loss of {job.task.type} is computed, all rows together"
        problems.append(Problem("training.prediction_loss_only", what, "Remove it."))
    if job.early_stopping and not evaluates and not problems:
        problems.append(
            Problem("early_stopping", "needs evaluations", "Set training.eval_strategy and data.validation.")
        )
    if (values.get("load_best_model_at_end") or job.early_stopping) and values.get("metric_for_best_model") is None:
        values["metric_for_best_model"] = "loss"
    return problems


def _check_best_model(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """Problems of loading the best model at the end, which needs a checkpoint at each evaluation."""
    asked = job.early_stopping and "load_best_model_at_end" not in job.training
    where = "early_stopping" if asked else "training.load_best_model_at_end"
    evaluates, saves = values["eval_strategy"], values["save_strategy"]
    if evaluates == "no":
        return [Problem(where, "needs evaluations", "Set training.eval_strategy and data.validation.")]
    if saves not in (evaluates, "best"):
        what = f"needs a checkpoint at each evaluation (eval_strategy '{evaluates}', save_strategy '{saves}')"
        return [Problem(where, what, "Make the two strategies equal, or save_strategy: best.")]
    steps = values.get("save_steps", 500)
    if saves == "steps" and _remainder(steps, values["eval_steps"]):
        what = f"needs save_steps to be a multiple of eval_steps ({steps:g} and {values['eval_steps']:g})"
        return [Problem(where, what, "Correct one.")]
    return []


def _remainder(save_steps: float, eval_steps: float) -> Fraction:
    """Remainder of the division, exact for decimal fractions too: as shares of all steps, 0.3 is three times 0.1."""
    return Fraction(str(save_steps)) % Fraction(str(eval_steps)) if eval_steps > 0 else Fraction(0)


def check_smoothing(job: TrainJob, values: dict[str, Any]) -> list[Problem]:
    """A problem where labels are smoothed in a task whose rows do not have one class each: smoothing moves a part of a
    label's weight to the other classes.
    """
    factor, kind = values.get("label_smoothing_factor") or 0, getattr(job.task, "problem_type", None)
    if factor and isinstance(job.task, SentenceSimilarity):
        what = f"needs one class a row, and rows of {job.task.type} have none ({factor:g})"
        return [Problem("training.label_smoothing_factor", what, "Remove it.")]
    if factor and isinstance(job.task, QuestionAnswering):
        what = f"needs one class a row, of {job.task.type} a row has two positions ({factor:g})"
        return [Problem("training.label_smoothing_factor", what, "Remove it.")]
    if factor and kind in ("regression", "multi_label_classification"):
        labels = "numbers" if kind == "regression" else "lists of classes"
        return [
            Problem(
                "training.label_smoothing_factor",
                f"needs one class a row, the labels of a {kind} are {labels} ({factor:g})",
                "Remove it.",
            )
        ]
    return []
