"""What the libraries say of a job's values: asked on the driver before anything is started, all answers at once."""

from __future__ import annotations

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.deepspeed_keys import without_effect
from raytrain_nlp.driver.deepspeed_values import check_deepspeed
from raytrain_nlp.errors import Problem


def check_values(job: TrainJob) -> list[Problem]:
    """Everything that needs neither data nor a model to be said."""
    return check_deepspeed(job)


def check_schedule(job: TrainJob, total_steps: int) -> list[Problem]:
    """What can be said as soon as the steps of the run are counted."""
    return check_deepspeed(job, total_steps) if "scheduler" in (job.deepspeed.config or {}) else []


def notes_of(job: TrainJob) -> list[str]:
    """What is taken and does nothing, a line each."""
    return without_effect(job.deepspeed.config or {})
