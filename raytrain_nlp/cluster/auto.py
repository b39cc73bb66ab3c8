"""What a job leaves to the machine - GPUs or CPUs, how many workers, which precision - found once, before anything else
uses the job.

`settled` returns a plain job, in which all of it is written out, with a line that tells it. Whoever gets the job from
there on (workers, the run's record, a resumed run) sees numbers and true or false.
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
"""Workers where there is no GPU: what shards and averages on one machine does so on many."""


@dataclass(frozen=True)
class Settled:
    """A job with nothing left open."""

    job: TrainJob
    line: str
    """What its workers compute on, for people."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value of what the job had left open."""


def settled(
    job: TrainJob, kept: Any = None, find: Callable[[], Place] | None = None, no_precision: bool = False
) -> Settled:
    """The job with GPUs, number of workers and precision settled.

    Args:
        kept: the record of the run that is continued, whose choices stay.
        find: tells where its workers could be; default: this machine, or the cluster this driver uses.
        no_precision: another part decides it (a sweep searches it).

    Raises:
        InputError: with what was found, the job's sections contradict each other.
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
    """The job with what the memory planner chose for the run of a record (None: a new run) where the job leaves it
    open, and those values by dotted key.
    """
    stays = {key: value for key, value in choices_of(kept).items() if key in job.auto} if kept is not None else {}
    if not stays:
        return job, {}
    return load_job(put_values(job.model_dump(exclude_unset=True, by_alias=True), stays)), stays


def _loaded(job: TrainJob, chosen: Mapping[str, Any], place: Place | None) -> TrainJob:
    """The job with what was chosen; where it contradicts that, the reason is what was found."""
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
    """Does the job say itself in which precision it trains? A DeepSpeed JSON does, unless it leaves that to the job."""
    values, config = job.arguments(), job.deepspeed.config
    if "bf16" in values or values.get("fp16") or job.model.dtype is not None:
        return True
    return config is not None and (config.get("bf16") or {}).get("enabled") != "auto"


# What follows


def _is_set(job: TrainJob, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in job.arguments() if section == "training" else name not in job.workers.auto


def _places(job: TrainJob, place: Place) -> list[int]:
    """Workers that have their GPUs on each machine."""
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
    """`2 workers on CPUs (this machine has no GPU)`."""
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
    """Why workers are on CPUs there."""
    there = sum(place.gpus)
    if there:
        return f"{place.where} has {there:g} GPU{'s' if there != 1 else ''}, which is not one for each"
    return f"{place.where} has no GPU{f': {place.remark}' if place.remark else ''}"
