"""The memory plan of a job: what each rank needs by part, what it has, and the nearest setting that fits where it does
not.

The model is built and a step of it run on torch's meta device, so no weights are needed, whatever their size. What a
part needs is `memory/zero.py`'s matter, what a step keeps alive `memory/activations.py`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.memory.available import find_available
from raytrain_nlp.memory.factors import count_weights, find_setting
from raytrain_nlp.memory.needs import PARTS, USABLE, Traces, checkpoints, chunked_losses, eval_shape, most_parts
from raytrain_nlp.memory.widest_batch import build_traced_model, widest_shape
from raytrain_nlp.memory.zero import Setting, Weights

_LESS = 0.8
"""After a plan that seemed to fit ran out of memory: the share of its bytes that the next one may need."""
_PROCESS = 10**9
"""A rough size in bytes of a worker's process without a model, for advice that compares two plans."""


@dataclass(frozen=True)
class MemoryPlan:
    """Peak bytes of one rank, in the memory it computes in: the GPU's, or the machine's."""

    parts: dict[str, int]
    """By `PARTS`."""
    host: int
    """Bytes that a GPU's rank offloads to the memory of its machine."""
    rows: int
    length: int
    """Rows and tokens a row of the widest micro-batch of the plan."""
    available: int | None
    """What a worker has, where that is known."""
    advice: str | None = None
    """Where it does not fit: what would."""
    note: str | None = None
    """Why activations are not counted."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        return None if self.available is None else self.total <= self.available * USABLE

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total, "fits": self.fits}


def plan_memory(
    job: TrainJob, model: Any, split: Split, eval_split: Split | None, base: int, available: int | None
) -> MemoryPlan:
    """The plan of a job whose model is on the meta device.

    Args:
        split: the training rows, opened; `eval_split`: the validation rows, or None.
        base: bytes of a worker's process without a model.
        available: bytes that a worker has; None: not known.
    """
    shape = widest_shape(split, job, job.arguments()["per_device_train_batch_size"])
    setting, weights = find_setting(job, model), count_weights(job, model)
    traces = Traces(
        model,
        setting.use_gpu,
        shape,
        eval_shape(job, eval_split),
        chunked_losses(job, split),
        split.task.build_objective(),
    )
    checkpointing = checkpoints(job)
    parts = most_parts(weights, setting, traces, checkpointing, shape.rows)
    plan = MemoryPlan(
        parts={name: round(parts.get(name, base if name == "process" else 0)) for name in PARTS},
        host=round(parts.get("host", 0)),
        rows=shape.rows,
        length=shape.length,
        available=available,
        note=traces.failure,
    )
    if plan.fits is not False or available is None:
        return plan
    return replace(
        plan, advice=_advise(job, weights, setting, traces, checkpointing, shape.rows, available * USABLE - base)
    )


def advise_after_failure(job: TrainJob, spec: Any) -> str:
    """After workers ran out of memory: the nearest setting that fits into what they have, or well below what the plan
    thought would do.
    """
    if not isinstance(spec.train, SplitSpec):
        return ""
    model = build_traced_model(job, spec.labels, spec.tokenizer_dir)
    splits = Split(spec.train), Split(spec.validation) if spec.validation else None
    plan = plan_memory(job, model, *splits, _PROCESS, find_available(job))
    return plan.advice or plan_memory(job, model, *splits, _PROCESS, round(plan.total * _LESS)).advice or ""


# Where it does not fit


def _advise(
    job: TrainJob, weights: Weights, setting: Setting, traces: Traces, checkpointing: bool, rows: int, room: float
) -> str:
    """The setting with the fewest changes that fits into `room` bytes, in a line."""
    accumulation = job.gradient_accumulation_steps

    def needs(changed: Setting, recomputes: bool, fewer: int) -> float:
        changed = replace(changed, accumulation=accumulation * -(-rows // fewer))
        parts = most_parts(weights, changed, traces, recomputes, fewer)
        return sum(parts[name] for name in PARTS[:-1])

    best = setting
    for changes, changed, recomputes, fewer in _candidates(job, setting, checkpointing, rows):
        if needs(changed, recomputes, fewer) <= room:
            texts = list(changes)
            if fewer != rows:
                texts += [
                    f"training.per_device_train_batch_size={fewer}",
                    f"training.gradient_accumulation_steps={accumulation * -(-rows // fewer)}",
                ]
            return f"It fits with --set {' --set '.join(texts)}."
        best = changed
    for factor in (2, 4, 8, 16, 32, 64, 128):
        more = replace(best, num_workers=setting.num_workers * factor, zero_stage=3)
        if needs(more, True, 1) <= room:
            return (
                f"No setting fits on {setting.num_workers} workers. It fits on {more.num_workers} with ZeRO 3, "
                f"gradient checkpointing and micro-batches of 1 row."
            )
    return "No number of workers helps: shorten data.max_length, or take a smaller model."


def _candidates(
    job: TrainJob, setting: Setting, checkpointing: bool, rows: int
) -> Iterator[tuple[list[str], Setting, bool, int]]:
    """Settings by the number of changes; among as many, those that cost least time first."""
    own = job.deepspeed.config is None
    stages = (
        [stage for stage in (setting.zero_stage, 1, 2, 3) if stage >= setting.zero_stage]
        if own and setting.num_workers > 1
        else [setting.zero_stage]
    )
    halves = [rows]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    offloads = [(setting.offload_optimizer, setting.offload_param)]
    offloads += [(True, setting.offload_param), (True, True)] if own and setting.use_gpu else []
    found = []
    for stage, recomputes, fewer, (optimizer, param) in itertools.product(
        dict.fromkeys(stages), dict.fromkeys([checkpointing, True]), halves, dict.fromkeys(offloads)
    ):
        if (optimizer and not stage) or (param and stage != 3):
            continue
        changes = [
            *([f"deepspeed.zero_stage={stage}"] if stage != setting.zero_stage else []),
            *(["training.gradient_checkpointing=true"] if recomputes != checkpointing else []),
            *(["deepspeed.offload_optimizer=cpu"] if optimizer != setting.offload_optimizer else []),
            *(["deepspeed.offload_param=cpu"] if param != setting.offload_param else []),
        ]
        changed = replace(setting, zero_stage=stage, offload_optimizer=optimizer, offload_param=param)
        # offloading costs most time; a smaller micro-batch less than recomputing, unless it is far smaller
        cost = (len(changes) + (fewer != rows), 8 * (optimizer + param) + 3 * recomputes + stage + halves.index(fewer))
        found.append((cost, (changes, changed, recomputes, fewer)))
    return (candidate for _, candidate in sorted(found, key=lambda item: item[0]))
