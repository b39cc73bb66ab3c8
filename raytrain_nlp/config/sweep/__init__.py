"""A sweep's job file: the job, what is searched, and how. `load_sweep` is the way in; imports no ML library."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from raytrain_nlp.config.base import Section, also, problems_of
from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.load import apply_override, load_job, read_values
from raytrain_nlp.config.sweep.schedulers import Fifo, HyperBand, Pbt, Scheduler, Searcher
from raytrain_nlp.config.sweep.search_space import (
    Point,
    SearchSpace,
    apply_point,
    grid_points,
    ordered,
    probe_points,
    tie,
)
from raytrain_nlp.errors import InputError, Problem

_RESERVED = ("name", "storage_path", "kind", "tracking", "checkpoint.save_total_limit")
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


class SweepJob(Section):
    """Many runs of one job with other values, and the best of them."""

    kind: Literal["sweep"]
    """What the file is: the job of `raytrain-nlp sweep`."""
    name: str = "sweep"
    """Folder of the sweep below storage_path."""
    storage_path: str | None = Field(None, min_length=1)
    """Default: the job's."""
    job: dict[str, Any] = Field(json_schema_extra=also({"type": "string"}))
    """The job: a path of a job file, or its sections."""
    search_space: SearchSpace = Field(min_length=1)
    """Dotted key of the job -> what is tried."""
    metric: str = "eval_loss"
    """A figure of the evaluations."""
    mode: Literal["min", "max"] = "min"
    """Is a lower or a higher figure better?"""
    num_samples: int | None = Field(None, ge=1, le=100_000)
    """Trials; default 10, or every point of a grid."""
    scheduler: Scheduler = Fifo()
    """Which trials end early."""
    searcher: Searcher = Searcher()
    """Which points are tried."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """Trials at a time at most; default: as many as there is room for."""
    reuse_workers: bool = True
    """Workers stay from trial to trial, which then starts in a fraction of the time; false where code of yours keeps a
    state of its own in the process.
    """
    max_trial_failures: int | None = Field(None, ge=0)
    """More failed trials than this end the sweep; default: only when all have failed."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the searcher. Each trial has the job's own seed."""
    tracking: TrackingConfig | None = None
    """Default: the job's."""
    register_model: str | None = Field(None, min_length=1)
    """Register the best model in MLflow under this name."""

    # pydantic makes a class method of it
    _run_name = field_validator("name")(TrainJob._run_name.__func__)  # type: ignore[attr-defined]

    @field_validator("metric", mode="before")
    @classmethod
    def _one_objective(cls, value: object) -> object:
        if isinstance(value, (list, tuple, dict)):
            raise ValueError("names several figures; a sweep has one objective || Name one figure, e.g. eval_loss.")
        if isinstance(value, str) and not value.startswith("eval_"):
            raise ValueError(f"is not a figure of the evaluations || They begin with eval_: did you mean eval_{value}?")
        return value


SweepSource = str | Path | Mapping[str, Any] | SweepJob


@dataclass(frozen=True)
class Sweep:
    """A sweep that passed all checks."""

    config: SweepJob
    job: TrainJob
    """The base of all trials; its storage path is the sweep's."""
    jobs: tuple[TrainJob, ...]
    """Jobs at the ends of the space."""
    num_trials: int

    @property
    def values(self) -> dict[str, Any]:
        """The base job as it was written."""
        return {**self.config.job, "storage_path": self.job.storage_path}

    def trial_values(self, point: Point) -> dict[str, Any]:
        return apply_point(self.values, self.config.search_space, point)

    @property
    def tracking(self) -> TrackingConfig:
        return self.config.tracking or self.job.tracking

    @property
    def pauses(self) -> bool:
        """May the scheduler interrupt a trial and continue it later?"""
        return isinstance(self.config.scheduler, (HyperBand, Pbt))


def load_sweep(source: SweepSource, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep; raises `InputError` with every problem found. `--set job.training.max_steps=10` reaches
    into the job.
    """
    values = _values_of(source)
    problems = [problem for override in overrides if (problem := apply_override(values, override))]
    if values.get("kind", "train") == "train" and "task" in values and "search_space" not in values:
        todo = "Use `raytrain-nlp train`, or name the file under `job:` of a sweep's."
        raise InputError(Problem("kind", "is the job of one run, not of a sweep", todo))
    try:
        config = SweepJob.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, SweepJob)
        if isinstance(values.get("job"), Mapping):
            problems += _try_load(values["job"])[1]
        raise InputError(problems) from None
    if config.storage_path:
        config.job["storage_path"] = config.storage_path
    job, found = _try_load(config.job)
    problems += found + _check_space(config)
    if problems or job is None:
        raise InputError(problems)
    sweep = Sweep(config, job, (), config.num_samples or _default_samples(config))
    problems = _check_job(sweep) + _check_optuna()
    jobs, found = _probe(sweep)
    problems += found
    if problems:
        raise InputError(problems)
    return replace(sweep, jobs=tuple(jobs))


def _values_of(source: SweepSource) -> dict[str, Any]:
    if isinstance(source, SweepJob):
        return source.model_dump(exclude_unset=True, by_alias=True)
    folder = Path(source).parent if isinstance(source, (str, Path)) else None
    values = read_values(source)
    if isinstance(values.get("job"), str):
        path = Path(values["job"])
        beside = folder / path if folder is not None else path
        values["job"] = read_values(beside if not path.exists() and beside.exists() else path)
    return values


def _try_load(values: Mapping[str, Any]) -> tuple[TrainJob | None, list[Problem]]:
    try:
        return load_job(values), []
    except InputError as error:
        return None, [replace(problem, where=f"job.{problem.where}") for problem in error.problems]


def _default_samples(config: SweepJob) -> int:
    return sum(1 for _ in grid_points(config.search_space)) if config.searcher.type == "grid" else 10


def _check_space(config: SweepJob) -> list[Problem]:
    problems = []
    try:
        ordered(config.search_space)
    except ValueError as error:
        key, _, what = str(error).partition(": ")
        return [Problem(f"search_space.{key}", what, "Name a key of search_space that is not a tie.")]
    if not any(entry.searched for entry in config.search_space.values()):
        problems.append(Problem("search_space", "has only ties", "Add a key to search."))
    for key, entry in config.search_space.items():
        where = f"search_space.{key}"
        if key.startswith(_RESERVED):
            problems.append(Problem(where, "is the sweep's own and cannot be searched", "Remove it."))
        if entry.grid and config.searcher.type != "grid":
            problems.append(
                Problem(
                    where,
                    f"is a grid, the searcher is {config.searcher.type}",
                    "Use choice, or searcher: {type: grid}.",
                )
            )
        if config.searcher.type == "grid" and entry.searched and entry.steps() is None:
            problems.append(
                Problem(
                    where,
                    "has no end of values, which a grid cannot try",
                    "Use grid, int or quniform, or another searcher.",
                )
            )
        if (
            entry.multiply
            and tie(
                config.job,
                {other: end for other, of in config.search_space.items() for end in of.ends()},
                entry.multiply,
            )
            is None
        ):
            problems.append(
                Problem(
                    where,
                    f"is tied to {entry.multiply[0]}, which has no number",
                    "Name a searched key, or one the job sets.",
                )
            )
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


def _check_job(sweep: Sweep) -> list[Problem]:
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


def _check_optuna() -> list[Problem]:
    missing = [name for name in ("optuna", "matplotlib") if importlib.util.find_spec(name) is None]
    return (
        [Problem("sweep", f"needs {' and '.join(missing)}, not installed", "pip install 'raytrain-nlp[sweep]'.")]
        if missing
        else []
    )


def _probe(sweep: Sweep) -> tuple[list[TrainJob], list[Problem]]:
    """Jobs at the ends of each key, and one problem for each key and value the job does not take."""
    jobs, problems, told = [], [], set()
    for key, value, point in probe_points(sweep.config.search_space):
        try:
            jobs.append(load_job(sweep.trial_values(point)))
        except InputError as error:
            for problem in error.problems:
                own = problem.where == key or problem.where.startswith(f"{key}.")
                where = f"search_space.{key if own else problem.where if problem.where in sweep.config.search_space else key}"  # noqa: E501
                what = (
                    problem.what
                    if own or problem.where in sweep.config.search_space
                    else f"with {value!r}, {problem.where} {problem.what}"
                )
                if (where, what) not in told:
                    told.add((where, what))
                    problems.append(Problem(where, what, problem.todo))
    return jobs, problems
