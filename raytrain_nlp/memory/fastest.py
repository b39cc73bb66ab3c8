"""The fastest setting that fits: ZeRO stage, micro-batch and gradient checkpointing, of which a job leaves some to the
memory planner.

Whatever is chosen, a step sees the same rows: the plan of batches knows `data.global_batch_size` alone. Settings are
walked in the order of their time (`memory/step_time.py`), and the first that fits is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, STAGE
from raytrain_nlp.data.split import Split
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.memory.factors import count_weights, find_setting
from raytrain_nlp.memory.needs import PARTS, USABLE, Traces, checkpoints, chunked_losses, eval_shape, most_parts
from raytrain_nlp.memory.step_time import step_seconds
from raytrain_nlp.memory.widest_batch import widest_shape

ASSUMED = 16 * 10**9
"""Bytes of a worker where nobody knows them: what the smallest GPUs have that are for training."""
_ALIKE = 1.03
"""Times that differ by less count as equal: of those the lower stage, then the larger micro-batch, then the one without
checkpointing is taken.
"""
_WIDEST = 1_024
"""Rows of the largest micro-batch that is looked at."""
_UNTRACED = 8
"""The same where a step cannot be traced, so that its activations are not known."""


@dataclass(frozen=True)
class Option:
    """A setting, and the values of the job's open keys that make it."""

    values: dict[str, Any]
    stage: int
    micro_batches: int
    rows: int
    recomputes: bool
    seconds: float
    """Of a step, to compare options with."""
    needs: int = 0
    """Bytes of a worker; 0: not looked at."""

    def told(self) -> str:
        """`ZeRO 2, 4 micro-batches of 8 rows, gradient checkpointing`: what of it was open."""
        parts = [f"ZeRO {self.stage}"] if STAGE in self.values else []
        if ACCUMULATION in self.values:
            count = f"{self.micro_batches} micro-batches" if self.micro_batches > 1 else "one micro-batch"
            parts.append(f"{count} of {self.rows} row{'s' if self.rows != 1 else ''}")
        if CHECKPOINTING in self.values:
            parts.append("gradient checkpointing" if self.recomputes else "no gradient checkpointing")
        return ", ".join(parts)


@dataclass(frozen=True)
class Choice:
    """What was chosen and why."""

    taken: Option
    second: Option | None
    """The fastest of the others that fit."""
    faster: Option | None
    """The fastest of all, where it does not fit."""
    available: int
    known: bool
    """Is what a worker has known, or assumed?"""
    workers: int
    """As few as the job may have."""
    fits: bool = True

    @property
    def values(self) -> dict[str, Any]:
        return self.taken.values

    def lines(self) -> list[str]:
        """What was chosen, why, and what would be next, for people."""
        has = f"{_gb(self.available)} GB a worker{'' if self.known else ', as much as is assumed: it is not known'}"
        if not self.fits:
            return [f"no setting fits: {self.taken.told()} needs least ({_gb(self.taken.needs)} of {has})"]
        why = f"; {self.faster.told()} would need {_gb(self.faster.needs)}" if self.faster else ""
        lines = [f"fastest setting that fits: {self.taken.told()} ({_gb(self.taken.needs)} of {has}{why})"]
        if self.second:
            ratio = self.second.seconds / self.taken.seconds
            time = f"about {ratio:.2g} x the time of a step" if ratio >= _ALIKE else "about the same time of a step"
            lines.append(f"next best: {self.second.told()} ({_gb(self.second.needs)} GB), {time}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the run's record and `check --json`."""
        second = self.second and {
            "values": self.second.values,
            "needs": self.second.needs,
            "step_time": round(self.second.seconds / self.taken.seconds, 3),
        }
        return {
            "values": self.values,
            "needs": self.taken.needs,
            "available": self.available,
            "available_known": self.known,
            "workers": self.workers,
            "fits": self.fits,
            "reason": self.lines()[0],
            "second": second,
        }


def choose(
    job: TrainJob,
    model: Any,
    split: Split,
    eval_split: Split | None,
    base: int,
    available: int | None,
    problems_of: Callable[[dict[str, Any]], list[Problem]] = lambda values: [],
) -> Choice:
    """The fastest setting of a job's open keys that fits; where none does, the one that needs least.

    Args:
        model: on the meta device (`build_traced_model`).
        split: the training rows, opened; `eval_split`: the validation rows, or None.
        base: bytes of a worker's process without a model.
        available: bytes that a worker has; None: not known, `ASSUMED` is taken.
        problems_of: what speaks against values of open keys in this job.

    Raises:
        InputError: something speaks against every setting; the problems of the fastest one.
    """
    memory = _Memory(job, model, split, eval_split, base)
    options = _by_time(list(_options(job, memory, float(split.plan.lengths[: split.plan.spec.num_rows].mean()))))
    room = available or ASSUMED
    fitting: list[Option] = []
    looked: list[Option] = []
    problems: list[Problem] = []
    for option in options:
        option = replace(option, needs=memory.needs(option))
        fits = option.needs <= room * USABLE
        if memory.untraced and option.rows > max(_UNTRACED, min(other.rows for other in options)):
            continue
        if (fits or not looked) and (found := problems_of(option.values)):
            problems = problems or found
            continue
        looked.append(option)
        fitting += [option] if fits else []
        if len(fitting) == 2:
            break
    if not looked:
        raise InputError(problems)
    least = min(looked, key=lambda option: option.needs)
    taken, faster = fitting[0] if fitting else least, looked[0]
    return Choice(
        taken=taken,
        second=fitting[1] if len(fitting) > 1 else None,
        faster=faster if faster is not taken and faster not in fitting else None,
        available=room,
        known=available is not None,
        workers=job.smallest.workers.num_workers,
        fits=bool(fitting),
    )


def needs_of(job: TrainJob, model: Any, split: Split, eval_split: Split | None, base: int) -> int:
    """Bytes of a worker with the settings that a job has."""
    memory = _Memory(job, model, split, eval_split, base)
    rows = memory.shape.rows
    return memory.needs(
        Option({}, job.deepspeed.zero_stage, job.gradient_accumulation_steps, rows, checkpoints(job), 0.0)
    )


class _Memory:
    """What options need, on as few workers as the job may have and on as many."""

    def __init__(self, job: TrainJob, model: Any, split: Split, eval_split: Split | None, base: int):
        rows = job.arguments()["per_device_train_batch_size"]
        self.shape = widest_shape(split, job, min(rows, _WIDEST) if ACCUMULATION in job.auto else rows)
        self.setting, self.weights, self._base = find_setting(job, model), count_weights(job, model), base
        self._traces = Traces(
            model,
            self.setting.use_gpu,
            self.shape,
            eval_shape(job, eval_split),
            chunked_losses(job, split),
            split.task.build_objective(),
        )
        self._sizes = {job.workers.num_workers, job.smallest.workers.num_workers}

    @property
    def untraced(self) -> bool:
        return self._traces.failure is not None

    def needs(self, option: Option) -> int:
        found = []
        for size in self._sizes:
            setting = replace(
                self.setting, zero_stage=option.stage, num_workers=size, accumulation=option.micro_batches
            )
            rows = min(option.rows, self.shape.rows)
            parts = most_parts(self.weights, setting, self._traces, option.recomputes, rows)
            found.append(self._base + sum(parts[name] for name in PARTS[:-1]))
        return round(max(found))


def _options(job: TrainJob, memory: _Memory, mean_length: float) -> Iterator[Option]:
    """All settings that the job's open keys allow."""
    auto = job.auto
    most = 2 if job.model.quantization else 3  # ZeRO-3 shards weights while they are loaded, bitsandbytes whole ones
    stages = range(job.deepspeed.zero_stage, most + 1) if STAGE in auto else [job.deepspeed.zero_stage]
    counts = _micro_batch_counts(job) if ACCUMULATION in auto else [job.gradient_accumulation_steps]
    checkpointing = [False, True] if CHECKPOINTING in auto else [checkpoints(job)]
    for stage, count, recomputed in itertools.product(stages, counts, checkpointing):
        rows = _rows(job, count) if ACCUMULATION in auto else memory.shape.rows
        values = {STAGE: stage, ACCUMULATION: count, CHECKPOINTING: recomputed}
        setting = replace(memory.setting, zero_stage=stage)
        seconds = step_seconds(memory.weights, setting, recomputed, count, rows * mean_length)
        chosen = {key: value for key, value in values.items() if key in auto}
        yield Option(chosen, stage, count, rows, recomputed, seconds)


def _by_time(options: list[Option]) -> list[Option]:
    best = min(option.seconds for option in options)

    def slower(option: Option) -> int:
        return math.floor(math.log(option.seconds / best) / math.log(_ALIKE) + 1e-9)

    return sorted(options, key=lambda option: (slower(option), *_order(option)))


def _order(option: Option) -> tuple[int, int, bool]:
    return option.stage, option.micro_batches, option.recomputes


def _rows(job: TrainJob, micro_batches: int) -> int:
    assert job.data.global_batch_size is not None, "the rows are open only with it"
    return -(-job.data.global_batch_size // (job.workers.num_workers * micro_batches))


def _micro_batch_counts(job: TrainJob) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ...: of counts that give equal rows the smallest."""
    most = _rows(job, 1)
    counts = [1, *(count for power in range(1, 40) for count in (2**power, 3 * 2 ** (power - 1)))]
    by_rows: dict[int, int] = {}
    for count in sorted({*counts, most}):
        if count <= most and _rows(job, count) <= _WIDEST:
            by_rows.setdefault(_rows(job, count), count)
    return list(by_rows.values())


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"
