"""Chooses what a job leaves to the machine: GPUs or CPUs, the number of workers, the precision. This happens once,
before anything else uses the job.

`settled` returns a job in which these values are written out. Workers, the run's record and a resumed run receive that
job, so that none of them has to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain_nlp.cluster.session import worker_cpus
from raytrain_nlp.cluster.targets import Place, find_place
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.auto import FITTED, PRECISION, choices_of, put_values
from raytrain_nlp.errors import InputError

CPU_WORKERS = 2
"""Number of workers without GPUs. With two, a run on one machine shards and averages as it would on several."""


@dataclass(frozen=True)
class Settled:
    """A job with all values chosen."""

    job: TrainJob
    line: str
    """For people: how many workers there are, on which devices, in which precision."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value, for each key that the job left open."""


def settled(
    job: TrainJob, kept: Any = None, find: Callable[[], Place] | None = None, no_precision: bool = False
) -> Settled:
    """Choose the devices, the number of workers and the precision of a job, where it leaves them open.

    Args:
        kept: the record of the run that is continued; its values are kept. None: a new run.
        find: returns where the workers could run; default: this machine, or the cluster that the driver uses.
        no_precision: do not choose the precision, because a sweep searches it.

    Raises:
        InputError: with the chosen values, the job's sections contradict each other.
    """
    place: Place | None = None

    def look() -> Place:
        nonlocal place
        place = place or (find or find_place)()
        return place

    chosen = (
        {key: value for key, value in choices_of(kept).items() if key not in FITTED and not _is_set(job, key)}
        if kept is not None
        else {}
    )
    use_gpu = job.workers.use_gpu
    if "use_gpu" in job.workers.auto:
        use_gpu = chosen["workers.use_gpu"] = (
            chosen["workers.use_gpu"] if "workers.use_gpu" in chosen else _wants_gpu(job, look)
        )
    if "num_workers" in job.workers.auto and "workers.num_workers" not in chosen:
        chosen["workers.num_workers"] = _count(job, use_gpu, look())
    if use_gpu and kept is None and not no_precision and not names_precision(job) and look().bf16:
        chosen[PRECISION] = True
    resolved = _loaded(job, chosen, place) if chosen else job
    resolved, stays = keep_fitted(resolved, kept)
    chosen |= stays
    return Settled(resolved, _line(resolved, chosen, place), chosen)


def keep_fitted(job: TrainJob, kept: Any) -> tuple[TrainJob, dict[str, Any]]:
    """Keep what the memory planner chose for a run that is continued, for the keys that the job leaves open.

    Args:
        kept: the record of the run; None: a new run.

    Returns:
        The job with these values, and the values by dotted key.
    """
    stays = {key: value for key, value in choices_of(kept).items() if key in job.auto} if kept is not None else {}
    if not stays:
        return job, {}
    return load_job(put_values(job.model_dump(exclude_unset=True, by_alias=True), stays)), stays


def _loaded(job: TrainJob, chosen: Mapping[str, Any], place: Place | None) -> TrainJob:
    """The job with the chosen values. Raises `InputError` where it contradicts them, with the reason for which they
    were chosen.
    """
    try:
        return load_job(put_values(job.model_dump(exclude_unset=True, by_alias=True), chosen))
    except InputError as error:
        found = _without_gpu(place) if place and "workers.use_gpu" in chosen else "workers.use_gpu is false"
        raise InputError(
            [
                replace(problem, what=problem.what.replace("workers.use_gpu is false", found))
                for problem in error.problems
            ]
        ) from None


def names_precision(job: TrainJob) -> bool:
    """Does the job itself say in which precision it trains? A DeepSpeed JSON does, unless `bf16.enabled` is "auto" in
    it.
    """
    values, config = job.arguments(), job.deepspeed.config
    if "bf16" in values or values.get("fp16") or job.model.dtype is not None:
        return True
    return config is not None and (config.get("bf16") or {}).get("enabled") != "auto"


def _is_set(job: TrainJob, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in job.arguments() if section == "training" else name not in job.workers.auto


def _places(job: TrainJob, place: Place) -> list[int]:
    """Number of workers that each machine has GPUs for."""
    each = job.workers.resources_per_worker.get("GPU") or 1
    return [int(count // each) for count in place.gpus]


def _wants_gpu(job: TrainJob, look: Callable[[], Place]) -> bool:
    if "GPU" in job.workers.resources_per_worker:
        return job.workers.resources_per_worker["GPU"] > 0
    least = 1 if "num_workers" in job.workers.auto else job.workers.min_workers or job.workers.num_workers
    return sum(_places(job, look())) >= least


def _count(job: TrainJob, use_gpu: bool, place: Place) -> int:
    most = max(_places(job, place), default=1) if use_gpu else CPU_WORKERS
    if place.cpus is not None and (each := worker_cpus(job)):
        most = min(most, int(place.cpus // each))
    return max(most, 1)


def _line(job: TrainJob, chosen: Mapping[str, Any], place: Place | None) -> str:
    """E.g. `2 workers on CPUs (this machine has no GPU)`."""
    workers, each = job.workers, job.workers.resources_per_worker.get("GPU", 1)
    count = f"{workers.min_workers} to {workers.num_workers}" if workers.elastic else f"{workers.num_workers}"
    who = f"{count} {'worker' if count == '1' else 'workers'}"
    values = job.arguments()
    precision = "bf16" if values.get("bf16") else "fp16" if values.get("fp16") else "fp32"
    if workers.use_gpu:
        kinds = f" ({', '.join(place.kinds)})" if place and place.kinds else ""
        on = f"{each:g} GPUs each" if each > 1 else "a GPU" if count == "1" else "GPUs"
        return f"{who} on {on}{kinds}, {precision}{' (training.bf16: false for fp32)' if PRECISION in chosen else ''}"
    if "workers.use_gpu" not in chosen or place is None:
        return f"{who} on CPUs"
    return f"{who} on CPUs ({_without_gpu(place)})"


def _without_gpu(place: Place) -> str:
    """Why workers run on CPUs."""
    there = sum(place.gpus)
    if there:
        return f"{place.where} has {there:g} GPU{'s' if there != 1 else ''}, which is not one for each"
    return f"{place.where} has no GPU{f': {place.remark}' if place.remark else ''}"
