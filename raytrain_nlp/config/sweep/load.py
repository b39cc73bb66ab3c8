"""Loads a sweep from a file, a dict or an object, and checks it together with the jobs at the ends of its space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raytrain_nlp.config.base import problems_of
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.load import apply_override, load_job, read_values
from raytrain_nlp.config.sweep.checks import check_job, check_optuna, check_space, probe_ends
from raytrain_nlp.config.sweep.job import Sweep, SweepJob
from raytrain_nlp.config.sweep.search_space import grid_points
from raytrain_nlp.errors import InputError, Problem

SweepSource = str | Path | Mapping[str, Any] | SweepJob


def load_sweep(source: SweepSource, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep.

    Args:
        source: the path of a sweep's job file, its sections, or a `SweepJob`.
        overrides: `dotted.key=value` with a YAML value; `job.training.max_steps=10` sets a key of the job.

    Raises:
        InputError: with every problem that was found.
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
    problems += found + check_space(config)
    if problems or job is None:
        raise InputError(problems)
    sweep = Sweep(config, job, (), config.num_samples or _default_samples(config))
    problems = check_job(sweep) + check_optuna()
    jobs, found = probe_ends(sweep)
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
