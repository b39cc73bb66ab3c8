"""A sweep's job file as one model: the job, the search space, the searcher and the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from raytrain_nlp.config.base import Section, accepts_also
from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.config.job import TrainJob
from raytrain_nlp.config.sweep.schedulers import Fifo, HyperBand, Pbt, Scheduler, Searcher
from raytrain_nlp.config.sweep.search_space import Point, SearchSpace, apply_point


class SweepJob(Section):
    """Many trials of one job with different values, and the best of them."""

    kind: Literal["sweep"]
    """Kind of the file: the job of `raytrain-nlp sweep`."""
    name: str = "sweep"
    """Name of the sweep. Its folder is storage_path/name."""
    storage_path: str | None = Field(None, min_length=1)
    """Where the sweep is kept. Default: the job's storage_path."""
    job: dict[str, Any] = Field(json_schema_extra=accepts_also({"type": "string"}))
    """The job of every trial: the path of a job file, or its sections."""
    search_space: SearchSpace = Field(min_length=1)
    """Dotted key of the job -> the values that trials may have."""
    metric: str = "eval_loss"
    """The figure of an evaluation by which trials are compared."""
    mode: Literal["min", "max"] = "min"
    """Whether a lower (min) or a higher (max) figure is better."""
    num_samples: int | None = Field(None, ge=1, le=100_000)
    """Number of trials. Default: 10, or every point of a grid."""
    scheduler: Scheduler = Fifo()
    """Decides which trials end early."""
    searcher: Searcher = Searcher()
    """Decides which points of the search space are tried."""
    max_concurrent_trials: int | None = Field(None, ge=1)
    """Number of trials at a time, at most. Default: as many as the cluster has room for."""
    reuse_workers: bool = True
    """Keep the processes of the workers from trial to trial, so that a trial starts in a fraction of the time. Set it
    to false where your own code keeps state in its process."""
    max_trial_failures: int | None = Field(None, ge=0)
    """The sweep ends with an error where more trials than this have failed. Default: only where all have failed."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the searcher and the scheduler. Every trial has the job's own seed."""
    tracking: TrackingConfig | None = None
    """Where figures are logged. Default: the job's section."""
    register_model: str | None = Field(None, min_length=1)
    """Name under which the best model is registered in MLflow."""

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


@dataclass(frozen=True)
class Sweep:
    """A sweep that passed all checks."""

    config: SweepJob
    job: TrainJob
    """The job on which all trials are based; its storage path is the sweep's."""
    jobs: tuple[TrainJob, ...]
    """The job with each key of the search space at each of its ends."""
    num_trials: int
    """Number of trials that are to be run."""

    @property
    def values(self) -> dict[str, Any]:
        """The sections of the base job as they were written."""
        return {**self.config.job, "storage_path": self.job.storage_path}

    def trial_values(self, point: Point) -> dict[str, Any]:
        """The sections of the job of a trial at this point of the search space."""
        return apply_point(self.values, self.config.search_space, point)

    @property
    def tracking(self) -> TrackingConfig:
        """The sweep's section, or the job's where the sweep has none."""
        return self.config.tracking or self.job.tracking

    @property
    def pauses(self) -> bool:
        """May the scheduler pause a trial and continue it later?"""
        return isinstance(self.config.scheduler, (HyperBand, Pbt))
