"""`scheduler:` and `searcher:` of a sweep, by Ray Tune's and Optuna's own names. Time is counted in evaluations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raytrain_nlp.config.base import Section

TimeAttr = Literal["training_iteration", "step", "epoch"]


class Fifo(Section):
    """Every trial runs to its end."""

    type: Literal["fifo"] = "fifo"


class Asha(Section):
    """`ray.tune.schedulers.ASHAScheduler`: bad trials are stopped early, without waiting for others."""

    type: Literal["asha"]
    time_attr: TimeAttr = "training_iteration"
    """What time is: evaluations, steps or epochs."""
    max_t: int | None = Field(None, ge=1)
    """Stops trials at this time; default: they run to their own end."""
    grace_period: float = Field(1, gt=0)
    """No trial is stopped before."""
    reduction_factor: float = Field(4, gt=1)
    """One of so many goes on at each rung."""
    brackets: int = Field(1, ge=1)
    """Brackets; each has another grace period."""


class HyperBand(Section):
    """`ray.tune.schedulers.HyperBandScheduler`: trials wait for each other at each rung. All are drawn at the start:
    the searcher does not learn.
    """

    type: Literal["hyperband"]
    time_attr: TimeAttr = "training_iteration"
    """What time is: evaluations, steps or epochs."""
    max_t: int | None = Field(None, ge=1)
    """Time of the longest trials; default: the evaluations of the job."""
    reduction_factor: float = Field(3, gt=1)
    """One of so many goes on at each rung."""


class MedianStopping(Section):
    """`ray.tune.schedulers.MedianStoppingRule`: stops a trial whose best figure is below the median of the others'
    means.
    """

    type: Literal["median_stopping"]
    time_attr: TimeAttr = "training_iteration"
    """What time is: evaluations, steps or epochs."""
    grace_period: float = Field(1, ge=0)
    """No trial is stopped before."""
    min_samples_required: int = Field(3, ge=1)
    """Trials a median is taken of at least."""


class Pbt(Section):
    """`ray.tune.schedulers.PopulationBasedTraining`: bad trials go on with a copy of a good one and changed values."""

    type: Literal["pbt"]
    time_attr: TimeAttr = "training_iteration"
    """What time is: evaluations, steps or epochs."""
    perturbation_interval: float = Field(1, gt=0)
    """Time between two changes."""
    burn_in_period: float = Field(0, ge=0)
    """No change before."""
    quantile_fraction: float = Field(0.25, gt=0, le=0.5)
    """This share of the trials, the worst, copies the same share of the best."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """A value is drawn anew instead of being changed by a factor."""
    perturbation_factors: tuple[float, float] = (1.2, 0.8)
    """Factors a value is changed by."""
    synch: bool = False
    """All trials change at the same time."""


Scheduler = Annotated[Fifo | Asha | HyperBand | MedianStopping | Pbt, Field(discriminator="type")]


class Searcher(Section):
    """Where the next point comes from; each is a sampler of Optuna."""

    type: Literal["random", "grid", "optuna"] = "optuna"
    """random; grid: every point of a finite space once; optuna: its TPE sampler, which learns from the trials
    before.
    """
    n_startup_trials: int = Field(10, ge=0)
    """optuna: trials drawn at random before it learns."""
    multivariate: bool = False
    """optuna: consider keys together."""
