"""`check --calibrate`: trains a few steps of a job and estimates time, throughput, cost and memory of the whole run. It
leaves no run behind.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain_nlp.config import TrainJob, load_job, plain_values
from raytrain_nlp.config.training import PROFILE_STEPS, VERIFY_EVERY
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.estimates import keep_estimate
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.tracking.events import read_events
from raytrain_nlp.verbs.train import run_resolved

if TYPE_CHECKING:
    from raytrain_nlp.planning.resolved import Resolved
    from raytrain_nlp.worker.spec import WorkerSpec

STEPS = 20
"""Steps that are trained, where the user does not say."""
_WARM_STEPS = 5
"""First steps that are not timed, because libraries are still loaded and buffers allocated in them."""
_EVAL_STEPS = 20
"""Evaluation batches that are scored at most."""
_SAMPLED_STEPS = 500
"""Steps of the plan whose padded tokens are averaged."""


@dataclass(frozen=True)
class Calibration:
    """What the trained steps took, and an estimate of the whole run."""

    steps: int
    """Number of timed steps, without the first ones, which are not timed."""
    step_seconds: float
    """Seconds of a mean step of the whole run, estimated from the padded tokens of the timed steps and of the
    plan's.
    """
    rows_per_second: float
    """Rows of a mean step, of all workers, by `step_seconds`."""
    start_seconds: float
    """Seconds from the start to the end of the first step."""
    evaluation_seconds: float
    """Seconds of one evaluation of all validation rows; 0 if there are none."""
    evaluations: int
    """Number of evaluations in the whole run."""
    total_seconds: float
    """Seconds of the start, all steps and all evaluations; without checkpoints and export."""
    peak_memory: list[int]
    """Peak memory of each rank, in bytes."""
    cost: float | None = None
    """Price of the whole run, in the unit of `price`; None if no price was given."""
    tokens_per_second: float = 0.0
    """Tokens of all workers without padding, mean of the timed steps."""
    epoch_seconds: float = 0.0
    """Seconds of the steps of one epoch, without evaluations."""
    epoch_cost: float | None = None
    """Price of one epoch, without evaluations."""
    mfu: float | None = None
    """Model FLOPs utilization of the first worker's GPU (0 to 1); None on CPU, or if the GPU's peak is not known."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds of a step by phase, under the names `time/PHASE` of a run's log; means of the timed steps."""

    def rows_for_people(self) -> dict[str, str]:
        """Name -> text of each line of the table that `check` prints."""
        evaluation = f", {self.evaluations} evaluations of {self.evaluation_seconds:.1f} s" if self.evaluations else ""
        mfu = f", MFU {self.mfu:.1%}" if self.mfu is not None else ""
        phases = ", ".join(
            f"{name.removeprefix('time/').replace('_', ' ')} {seconds:.3g} s"
            for name, seconds in self.times.items()
            if name not in ("time/step", "time/checkpoint")
        )
        epoch_cost = f", cost {self.epoch_cost:,.2f}" if self.epoch_cost is not None else ""
        return {
            "time of a step": f"{self.step_seconds:.3g} s, {self.rows_per_second:,.1f} rows/s (mean of {self.steps} "
            f"steps)",
            "  of which": phases or "not known",
            "throughput": f"{self.tokens_per_second:,.0f} tokens/s{mfu}",
            "an epoch": f"{_duration(self.epoch_seconds)}{epoch_cost}",
            "time of the run": f"{_duration(self.total_seconds)} (start {self.start_seconds:.0f} s{evaluation}; "
            f"without checkpoints)",
            **({"cost": f"{self.cost:,.2f}"} if self.cost is not None else {}),
            "memory of a worker, measured": f"{max(self.peak_memory) / 1e6:,.0f} MB",
        }


def calibrate(job: TrainJob, resolved: Resolved, steps: int, price: float | None, observer: Observer) -> Calibration:
    """Train `steps` steps of a resolved job, score some validation batches, and delete the files of both.

    Args:
        steps: at most those of the run are trained.
        price: the price of an hour of all workers together; None: no cost is computed.

    Raises:
        RunError: training failed, as the run itself would.
    """
    spec = resolved.spec
    steps = min(steps, spec.total_steps)
    # a folder below the storage path, because all nodes can read and write there
    paths = RunPaths(f"{spec.storage_path}/.calibration-{uuid.uuid4().hex[:8]}", job.name)
    short = _shortened(job, steps)
    eval_steps = min(spec.eval_steps, _EVAL_STEPS)
    spec = replace(
        spec,
        job=short,
        storage_path=str(paths.storage),
        total_steps=steps,
        eval_steps=eval_steps,
        named_validations={},
        exports=False,
    )
    observer.stage(f"calibrating: {steps} steps")
    started = time.time()
    try:
        run_resolved(short, replace(resolved, spec=spec), paths, observer, tracked=False)
        events = [event for event, _ in read_events(paths.events)]
    finally:
        paths.store.delete_tree(paths.storage)
    found = _estimate(events, job, resolved, started, eval_steps, price)
    keep_estimate(job, resolved.spec.storage_path, found.total_seconds, found.step_seconds)
    return found


def _shortened(job: TrainJob, steps: int) -> TrainJob:
    """The job with `steps` steps, each of them logged, without checkpoints, and with one evaluation at the end."""
    values = plain_values(job)
    unwanted = ("load_best_model_at_end", "save_steps", "eval_steps", "num_train_epochs", PROFILE_STEPS, VERIFY_EVERY)
    training = {key: value for key, value in values.get("training", {}).items() if key not in unwanted}
    values["training"] = {
        **training,
        "max_steps": steps,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    return load_job({**values, "checkpoint": {}, "early_stopping": None, "tracking": {}})


def _estimate(
    events: list[dict[str, Any]],
    job: TrainJob,
    resolved: Resolved,
    started: float,
    eval_steps: int,
    price: float | None,
) -> Calibration:
    """The calibration, from the events of the trained steps.

    Args:
        started: when the calibration began, in seconds since the epoch.
        eval_steps: evaluation batches that were scored.
    """
    spec = resolved.spec
    ends = {
        event["step"]: event["time"] / 1000 for event in events if event["kind"] == "log" and "loss" in event["metrics"]
    }
    seconds = {step: ends[step] - ends[step - 1] for step in ends if step - 1 in ends}
    kept = (
        {step: value for step, value in seconds.items() if step > min(_WARM_STEPS, len(ends) // 2)}
        or seconds
        or {1: ends[1] - started}
    )
    step_seconds, rows = _mean_step(kept, job, resolved)
    scored = next(
        (
            event["metrics"]["eval_runtime"]
            for event in reversed(events)
            if event["kind"] == "log" and "eval_runtime" in event["metrics"]
        ),
        0.0,
    )
    evaluation_seconds = scored * spec.eval_steps / max(eval_steps, 1)
    evaluations, start_seconds = _count_evaluations(job, spec), min(ends.values()) - started
    logs = [
        event["metrics"]
        for event in events
        if event["kind"] == "log" and event["step"] in kept and "loss" in event["metrics"]
    ]
    epoch_seconds = spec.steps_per_epoch * step_seconds
    total = start_seconds + (spec.total_steps - 1) * step_seconds + evaluations * evaluation_seconds
    return Calibration(
        steps=len(kept),
        step_seconds=step_seconds,
        rows_per_second=rows / step_seconds,
        start_seconds=start_seconds,
        evaluation_seconds=evaluation_seconds,
        evaluations=evaluations,
        total_seconds=total,
        peak_memory=next(event["peak_memory"] for event in reversed(events) if event["kind"] == "end"),
        cost=None if price is None else total / 3600 * price,
        tokens_per_second=_mean(logs, "tokens_per_second") or 0.0,
        epoch_seconds=epoch_seconds,
        epoch_cost=None if price is None else epoch_seconds / 3600 * price,
        mfu=_mean(logs, "mfu"),
        times={name: value for name in _phases(logs) if (value := _mean(logs, name)) is not None},
    )


def _mean(logs: list[dict[str, float]], name: str) -> float | None:
    """The mean of a figure over the logs that have it; None if none has."""
    values = [log[name] for log in logs if name in log]
    return sum(values) / len(values) if values else None


def _phases(logs: list[dict[str, float]]) -> list[str]:
    return [name for name in (logs[-1] if logs else {}) if name.startswith("time/")]


def _mean_step(seconds: dict[int, float], job: TrainJob, resolved: Resolved) -> tuple[float, float]:
    """Seconds and rows of a mean step of the whole run.

    Args:
        seconds: number of a timed step, from 1 on -> its seconds.
    """
    if resolved.windows:  # streamed rows: later windows have no plan yet, so the timed steps stand for all
        split, _ = resolved.windows.sample(0)
        return float(np.mean(list(seconds.values()))), float(
            split.plan.spec.global_batch_size or len(split.plan.batch(0, 0))
        )
    assert isinstance(resolved.spec.train, SplitSpec), "not a stream"
    split = Split(resolved.spec.train)
    cost = _step_cost(split, job)
    last = min(resolved.spec.total_steps, split.plan.steps_per_epoch) - 1
    sample = np.unique(np.linspace(0, last, _SAMPLED_STEPS).astype(int))
    of_all = np.array([cost(int(step)) for step in sample], dtype=float)
    timed = np.array([cost(step - 1) for step in seconds], dtype=float)
    rows = np.mean([len(split.plan.at(int(step))[2]) for step in sample])
    return float(predict_mean(timed, np.array(list(seconds.values())), of_all.mean())), float(rows)


def predict_mean(timed: np.ndarray, seconds: np.ndarray, mean: float) -> float:
    """Seconds of a step with `mean` padded tokens, from a straight line fitted to the timed steps. The line is made not
    to fall with more tokens and not to be negative at 0 tokens; if all steps have about the same tokens, the mean.

    Args:
        timed: padded tokens of each timed step, shape [steps].
        seconds: seconds of each timed step, shape [steps].
    """
    if np.ptp(timed) > 0.1 * timed.mean():
        slope, constant = np.polyfit(timed, seconds, 1)
        if slope < 0:
            slope, constant = 0.0, seconds.mean()
        elif constant < 0:
            slope, constant = seconds.sum() / timed.sum(), 0.0
        return slope * mean + constant
    return seconds.mean()


def _step_cost(split: Split, job: TrainJob) -> Callable[[int], int]:
    """Returns a function of a step (from 0 on): the padded tokens that determine its time. In each micro-batch these
    are the tokens of the rank with the most, as the others wait for it.
    """
    lengths = split.plan.lengths

    def cost(step: int) -> int:
        parts = split_batch(split.plan.at(step)[2], job.workers.num_workers, job.gradient_accumulation_steps)
        return sum(max(len(rows) * int(lengths[rows].max()) if len(rows) else 0 for rows in micro) for micro in parts)

    return cost


def _count_evaluations(job: TrainJob, spec: WorkerSpec) -> int:
    """The number of evaluations in the run. If the job asks for none but has validation rows, there is one at the
    end.
    """
    if spec.validation is None:
        return 0
    values = job.arguments()
    if values["eval_strategy"] == "epoch":
        return math.ceil(spec.total_steps / spec.steps_per_epoch)
    every = values.get("eval_steps", 0) if values["eval_strategy"] == "steps" else 0
    every = math.ceil(every * spec.total_steps) if 0 < every < 1 else int(every)
    return max(spec.total_steps // every, 1) if every else 1


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
