"""Lets the memory planner choose the keys that a job leaves to `auto`, after its tokens are prepared (their lengths
decide what a step needs) and before workers start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, put_values, without_values
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.memory.fastest import Choice, choose, needs_of
from raytrain_nlp.memory.needs import USABLE
from raytrain_nlp.memory.widest_batch import build_traced_model
from raytrain_nlp.planning.library_checks import check_model_names, check_values
from raytrain_nlp.planning.resolved import Resolved

_ASKED = {ACCUMULATION: "training.per_device_train_batch_size", CHECKPOINTING: CHECKPOINTING}
"""Key that the planner sets -> key that a job sets to `auto` for it."""


@dataclass(frozen=True)
class Fitted:
    """A job without `auto` keys, and what its workers receive."""

    job: TrainJob
    resolved: Resolved
    choice: Choice | None = None
    """The planner's choice; None if there was nothing to choose, or a resumed run keeps its setting."""

    @property
    def values(self) -> dict[str, Any]:
        """Dotted key -> chosen value; empty without a choice."""
        return self.choice.values if self.choice else {}


def fit_job(
    job: TrainJob,
    resolved: Resolved,
    available: Callable[[], int | None],
    base: Callable[[], int] = lambda: 0,
    kept: Mapping[str, Any] | None = None,
    train_bytes: int = 0,
) -> Fitted:
    """Choose the fastest setting that fits for the keys that the job leaves to `auto`.

    Args:
        available: returns the memory of a worker in bytes, or None if it is not known; called only if there is
            something to choose.
        base: returns the memory of a worker's process without a model, in bytes.
        kept: the record of the run that is resumed. Its micro-batch size and gradient checkpointing are kept unless
            they no longer fit; its ZeRO stage is always kept, as checkpoints depend on it.
        train_bytes: bytes of the training files, if rows are streamed.
    """
    planned = (kept or {}).get("setting") or {}
    reopened = [key for key in _ASKED if key in planned.get("values", {}) and key not in job.auto]
    if not job.auto and not reopened:
        return Fitted(job, resolved)
    has = available()
    if not job.auto and planned["workers"] <= job.smallest.workers.num_workers and planned["available"] <= (has or 0):
        return Fitted(job, resolved)
    spec = resolved.spec
    if resolved.windows:
        split, _ = resolved.windows.sample(train_bytes)
    else:
        assert isinstance(spec.train, SplitSpec), "not a stream"
        split = Split(spec.train)
    data = split, Split(spec.validation) if spec.validation else None
    model = build_traced_model(job, spec.labels, spec.tokenizer_dir)
    if not job.auto and (has is None or needs_of(job, model, *data, base()) <= has * USABLE):
        return Fitted(job, resolved)
    opened = _reopened(job, reopened) if reopened and not job.auto else job
    choice = choose(opened, model, *data, base(), has, lambda values: _problems_of(opened, values, resolved))
    return with_choice(opened, resolved, choice)


def with_choice(job: TrainJob, resolved: Resolved, choice: Choice) -> Fitted:
    """The job and what its workers receive, with the chosen values. Raises `InputError` if they contradict the job."""
    job = with_values(job, choice.values)
    spec = replace(resolved.spec, job=with_values(resolved.spec.job, choice.values))
    return Fitted(job, replace(resolved, spec=spec), choice)


def with_values(job: TrainJob, values: Mapping[str, Any]) -> TrainJob:
    """The job with values for dotted keys that it left to `auto`."""
    return load_job(put_values(job.model_dump(exclude_unset=True, by_alias=True), values))


def _reopened(job: TrainJob, keys: list[str]) -> TrainJob:
    """The job of a resumed run, in which keys that were chosen before are left to `auto` again."""
    values = without_values(job.model_dump(exclude_unset=True, by_alias=True), keys)
    return load_job(put_values(values, {_ASKED[key]: "auto" for key in keys}))


def _problems_of(opened: TrainJob, values: Mapping[str, Any], resolved: Resolved) -> list[Problem]:
    """What the job's sections or the libraries object to in a setting's values. Without them the job has passed the
    same checks.
    """
    from raytrain_nlp.modeling.tokenizer import load_tokenizer

    spec = resolved.spec
    try:
        job = with_values(opened, values)
        return check_values(job) or check_model_names(job, spec.labels, load_tokenizer(spec.tokenizer_dir))
    except InputError as error:
        return error.problems
