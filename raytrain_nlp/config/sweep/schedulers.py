"""`scheduler:` and `searcher:` of a sweep, by the names of Ray Tune and Optuna. Time is counted in evaluations, steps
or epochs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raytrain_nlp.config.base import Section

TimeAttr = Literal["training_iteration", "step", "epoch"]


class Fifo(Section):
    """Every trial runs to its end."""

    type: Literal["fifo"] = "fifo"


class Asha(Section):
    """`ray.tune.schedulers.ASHAScheduler`: stops bad trials early, without waiting for the others."""

    type: Literal["asha"]
    time_attr: TimeAttr = "training_iteration"
    """Unit of time: evaluations (training_iteration), steps or epochs."""
    max_t: int | None = Field(None, ge=1)
    """Time at which every trial is stopped. Default: trials run to their own end."""
    grace_period: float = Field(1, gt=0)
    """Time before which no trial is stopped."""
    reduction_factor: float = Field(4, gt=1)
    """At each rung, one trial of so many goes on."""
    brackets: int = Field(1, ge=1)
    """Number of brackets, each of which has a grace period of its own."""


class HyperBand(Section):
    """`ray.tune.schedulers.HyperBandScheduler`: trials wait for each other at each rung. All points are drawn at the
    start, so the searcher does not learn from results.
    """

    type: Literal["hyperband"]
    time_attr: TimeAttr = "training_iteration"
    """Unit of time: evaluations (training_iteration), steps or epochs."""
    max_t: int | None = Field(None, ge=1)
    """Time of the longest trials. Default: the length of the job."""
    reduction_factor: float = Field(3, gt=1)
    """At each rung, one trial of so many goes on."""


class MedianStopping(Section):
    """`ray.tune.schedulers.MedianStoppingRule`: stops a trial whose best figure is worse than the median of the other
    trials' means.
    """

    type: Literal["median_stopping"]
    time_attr: TimeAttr = "training_iteration"
    """Unit of time: evaluations (training_iteration), steps or epochs."""
    grace_period: float = Field(1, ge=0)
    """Time before which no trial is stopped."""
    min_samples_required: int = Field(3, ge=1)
    """Number of trials that a median is computed from, at least."""


class Pbt(Section):
    """`ray.tune.schedulers.PopulationBasedTraining`: bad trials continue from a copy of a good one, with changed
    values.
    """

    type: Literal["pbt"]
    time_attr: TimeAttr = "training_iteration"
    """Unit of time: evaluations (training_iteration), steps or epochs."""
    perturbation_interval: float = Field(1, gt=0)
    """Time between two changes of a trial."""
    burn_in_period: float = Field(0, ge=0)
    """Time before which no trial is changed."""
    quantile_fraction: float = Field(0.25, gt=0, le=0.5)
    """Share of the trials that are bad, and share that are good: each of the worst copies one of the best."""
    resample_probability: float = Field(0.25, ge=0, le=1)
    """Probability that a value is drawn anew, instead of being multiplied by a factor."""
    perturbation_factors: tuple[float, float] = (1.2, 0.8)
    """Factors that a changed value is multiplied by."""
    synch: bool = False
    """Change all trials at the same time; by default each one when its time has come."""


Scheduler = Annotated[Fifo | Asha | HyperBand | MedianStopping | Pbt, Field(discriminator="type")]


class Searcher(Section):
    """How the next point of the search space is chosen; every type is a sampler of Optuna."""

    type: Literal["random", "grid", "optuna"] = "optuna"
    """random: points are drawn at random; grid: every point of a finite space once; optuna: Optuna's TPE sampler, which
    learns from earlier trials."""
    n_startup_trials: int = Field(10, ge=0)
    """optuna: number of trials that are drawn at random before it learns."""
    multivariate: bool = False
    """optuna: take dependencies between keys into account."""
