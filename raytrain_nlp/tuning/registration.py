"""The best model of a sweep in MLflow's registry, as `export --register` puts a run's there."""

from __future__ import annotations

from collections.abc import Callable

from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.errors import Problem, RaytrainNlpError
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.run.trial_records import TrialRecord


def check_registration(plan: Sweep) -> list[Problem]:
    """The problem where a sweep is to register its best model, but MLflow's transformers flavor lacks the task."""
    from raytrain_nlp.tracking.registry import PIPELINES

    if plan.config.register_model is None or plan.job.task.type in PIPELINES:
        return []
    return [
        Problem(
            "register_model",
            f"is not possible for {plan.job.task.type}: transformers 5 has no pipeline for it",
            "Leave it out.",
        )
    ]


def register_best(plan: Sweep, paths: SweepPaths, best: TrialRecord, warn: Callable[[str], None]) -> str | None:
    """Register the best trial's model in MLflow; an adapter is merged into its base model first. Returns the version;
    None, with a warning, where that fails.
    """
    from raytrain_nlp.host.scratch import scratch_folder
    from raytrain_nlp.run.saved_run import find_run, find_weights
    from raytrain_nlp.tracking.registry import register_model
    from raytrain_nlp.verbs.export import write_weights

    name = plan.config.register_model
    assert name is not None, "the sweep registers its best model"
    run = find_run(paths.trial(best.number).run)
    try:
        with scratch_folder() as folder:
            write_weights(
                run, find_weights(run, None), folder / "model", None, merge_lora=True, stage=lambda text: None
            )
            return register_model(
                plan.job.tracking,
                paths.database_folder,
                best.mlflow_run_id,
                folder / "model",
                plan.job.task.type,
                name,
            )
    except RaytrainNlpError as error:
        warn(
            f"{error} Register it by hand: raytrain-nlp export {run.paths.run} --output DIR --merge-lora --register "
            f"{name}."
        )
        return None
