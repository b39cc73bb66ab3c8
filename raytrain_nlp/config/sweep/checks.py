"""What contradicts itself in a sweep's job file, between its own sections and in the jobs of its trials."""

from __future__ import annotations

import importlib.util
from typing import Any

from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.load import load_job
from raytrain_nlp.config.sweep.job import Sweep, SweepJob
from raytrain_nlp.config.sweep.schedulers import Pbt
from raytrain_nlp.config.sweep.search_space import SearchKey, ordered, probe_points, tie
from raytrain_nlp.errors import InputError, Problem

_RESERVED = ("name", "storage_path", "kind", "tracking", "checkpoint.save_total_limit")
"""Beginnings of keys that the sweep sets itself."""
_PBT_FIXED = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "optim",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "lr_scheduler_type",
)
"""Keys of `training` that cannot change while a model trains."""


def check_space(config: SweepJob) -> list[Problem]:
    """Problems of the search space: its conditions, its ties, and keys that the searcher or scheduler cannot search."""
    try:
        ordered(config.search_space)
    except ValueError as error:
        key, _, what = str(error).partition(": ")
        return [Problem(f"search_space.{key}", what, "Name a key of search_space that is not a tie.")]
    problems = []
    if not any(entry.searched for entry in config.search_space.values()):
        problems.append(Problem("search_space", "has only ties", "Add a key to search."))
    for key, entry in config.search_space.items():
        problems += _check_key(config, key, entry)
    return problems


def _check_key(config: SweepJob, key: str, entry: SearchKey) -> list[Problem]:
    where, searcher, problems = f"search_space.{key}", config.searcher.type, []
    if key.startswith(_RESERVED):
        problems.append(Problem(where, "is the sweep's own and cannot be searched", "Remove it."))
    if entry.grid and searcher != "grid":
        todo = "Use choice, or searcher: {type: grid}."
        problems.append(Problem(where, f"is a grid, the searcher is {searcher}", todo))
    if searcher == "grid" and entry.searched and entry.steps() is None:
        todo = "Use grid, int or quniform, or another searcher."
        problems.append(Problem(where, "has infinitely many values, which a grid cannot try", todo))
    ends = {other: end for other, of in config.search_space.items() for end in of.ends()}
    if entry.multiply and tie(config.job, ends, entry.multiply) is None:
        what = f"is tied to {entry.multiply[0]}, which has no number"
        problems.append(Problem(where, what, "Name a searched key, or one the job sets."))
    if isinstance(config.scheduler, Pbt):
        problems += _check_pbt_key(where, key, entry.when)
    return problems


def _check_pbt_key(where: str, key: str, when: dict[str, Any]) -> list[Problem]:
    section, _, name = key.partition(".")
    if (section == "training" and name not in _PBT_FIXED) or key == "lora.lora_dropout":
        return [Problem(where, "has a condition, which pbt cannot keep", "Remove `when`.")] if when else []
    return [
        Problem(where, "cannot change while a model trains, as pbt would have it", "Search it with another scheduler.")
    ]


def check_job(sweep: Sweep) -> list[Problem]:
    """Problems of a job whose trials could not be compared, or not be paused as the scheduler does."""
    arguments = sweep.job.arguments()
    if arguments["eval_strategy"] == "no":
        return [Problem("job.data.validation", "is missing: a sweep compares evaluations", "Add it.")]
    if sweep.job.workers.elastic:
        return [
            Problem(
                "job.workers.num_workers", "is a range, but trials are compared on equal workers", "Write one number."
            )
        ]
    kind = sweep.config.scheduler.type
    if not sweep.pauses or (
        arguments["save_strategy"] == arguments["eval_strategy"]
        and (arguments["save_strategy"] != "steps" or arguments.get("save_steps", 500) == arguments["eval_steps"])
    ):
        return []
    todo = "Make save_strategy and save_steps equal to eval_strategy and eval_steps."
    return [Problem("job.training.save_strategy", f"{kind} needs a checkpoint at each evaluation", todo)]


def check_optuna() -> list[Problem]:
    """A problem where the packages of the extra `sweep` are not installed."""
    missing = [name for name in ("optuna", "matplotlib") if importlib.util.find_spec(name) is None]
    return (
        [Problem("sweep", f"needs {' and '.join(missing)}, not installed", "pip install 'raytrain-nlp[sweep]'.")]
        if missing
        else []
    )


def probe_ends(sweep: Sweep) -> tuple[list[TrainJob], list[Problem]]:
    """Load the job with each key of the search space at each of its ends.

    Returns:
        The jobs that loaded, and a problem for each key and value that the job does not accept.
    """
    space = sweep.config.search_space
    jobs, problems, told = [], [], set()
    for key, value, point in probe_points(space):
        try:
            jobs.append(load_job(sweep.trial_values(point)))
        except InputError as error:
            for problem in error.problems:
                own = problem.where == key or problem.where.startswith(f"{key}.")
                searched = problem.where in space
                where = f"search_space.{problem.where if searched and not own else key}"
                what = problem.what if own or searched else f"with {value!r}, {problem.where} {problem.what}"
                if (where, what) not in told:
                    told.add((where, what))
                    problems.append(Problem(where, what, problem.todo))
    return jobs, problems
