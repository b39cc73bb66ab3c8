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
from raytrain_nlp.memory.activations import StepTrace, trace_step
from raytrain_nlp.memory.available import find_available, parse_bytes
from raytrain_nlp.memory.factors import count_weights, find_setting
from raytrain_nlp.memory.widest_batch import Shape, build_traced_model, checkpoint_activations, widest_shape
from raytrain_nlp.memory.zero import Setting, Weights, step_memory

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers", "process")
_USABLE = 0.95
"""Usable share of a worker's memory: the rest is for rounding and fragmentation in allocators."""
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
        return None if self.available is None else self.total <= self.available * _USABLE

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total, "fits": self.fits}


def plan_memory(
    job: TrainJob, model: Any, split: Split, eval_split: Split | None, base: int, worker_memory: str | None
) -> MemoryPlan:
    """The plan of a job whose model is on the meta device.

    Args:
        split: the training rows, opened; `eval_split`: the validation rows, or None.
        base: bytes of a worker's process without a model.
        worker_memory: what a worker has, as the user says (`80GB`); None: what this machine has for each.
    """
    shape = widest_shape(split, job, job.arguments()["per_device_train_batch_size"])
    setting, weights = find_setting(job, model), count_weights(job, model)
    traces = _Traces(model, setting.use_gpu, shape, _eval_shape(job, eval_split))
    available = parse_bytes(worker_memory, "--worker-memory") if worker_memory else find_available(job)
    checkpointing = _checkpointing(job)
    parts = _most(weights, setting, traces, checkpointing, shape.rows)
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
        plan, advice=_advise(job, weights, setting, traces, checkpointing, shape.rows, available * _USABLE - base)
    )


def advise_after_failure(job: TrainJob, spec: Any) -> str:
    """After workers ran out of memory: the nearest setting that fits into what they have, or well below what the plan
    thought would do.
    """
    if not isinstance(spec.train, SplitSpec):
        return ""
    model = build_traced_model(job, spec.labels, spec.tokenizer_dir)
    splits = Split(spec.train), Split(spec.validation) if spec.validation else None
    plan = plan_memory(job, model, *splits, _PROCESS, None)
    return plan.advice or plan_memory(job, model, *splits, _PROCESS, str(round(plan.total * _LESS))).advice or ""


# One setting


class _Traces:
    """Steps of the model by gradient checkpointing, traced when first asked for."""

    def __init__(self, model: Any, use_gpu: bool, shape: Shape, eval_shape: Shape | None):
        self._model, self._use_gpu, self._shape, self._eval_shape = model, use_gpu, shape, eval_shape
        self._found: dict[tuple[bool, int], StepTrace] = {}
        self._evaluation: StepTrace | None = None
        self.failure: str | None = None
        """Why a step could not be traced."""

    def train(self, checkpointing: bool, rows: int) -> StepTrace:
        """A step of at most as many rows as the widest micro-batch has."""
        most = self._shape.rows
        if rows in (most, 1):
            return self._trace(checkpointing, rows)
        return self._trace(checkpointing, 1).towards(self._trace(checkpointing, most), (rows - 1) / (most - 1))

    def _trace(self, checkpointing: bool, rows: int) -> StepTrace:
        if (checkpointing, rows) not in self._found:
            with checkpoint_activations(self._model, checkpointing):
                inputs = {
                    name: value[:rows] if hasattr(value, "dtype") else value
                    for name, value in self._shape.tensors.items()
                }
                self._found[checkpointing, rows] = self._try(inputs, self._shape.padded)
        return self._found[checkpointing, rows]

    def evaluation(self) -> StepTrace | None:
        """One of the widest batch of the validation rows."""
        if self._eval_shape is not None and self._evaluation is None:
            self._evaluation = self._try(self._eval_shape.tensors, self._eval_shape.padded, train=False)
        return self._evaluation

    def _try(self, inputs: dict[str, Any], padded: bool, train: bool = True) -> StepTrace:
        try:
            return trace_step(self._model, inputs, padded=padded, use_gpu=self._use_gpu, train=train)
        except Exception as error:  # whatever a model does that cannot be done without memory  # noqa: BLE001
            self.failure = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            return StepTrace(((0, 0, 0),), 0)


def _most(weights: Weights, setting: Setting, traces: _Traces, checkpointing: bool, rows: int) -> dict[str, float]:
    """Parts of a training step, or of an evaluation where that needs more."""
    found = [traces.train(checkpointing, rows), traces.evaluation()]
    return max(
        (step_memory(weights, setting, trace) for trace in found if trace),
        key=lambda parts: sum(parts[name] for name in PARTS[:-1]),
    )


def _checkpointing(job: TrainJob) -> bool:
    values = job.arguments()
    return bool(values.get("gradient_checkpointing") or values.get("activation_checkpointing"))


def _eval_shape(job: TrainJob, split: Split | None) -> Shape | None:
    return (
        widest_shape(split, job, job.arguments().get("per_device_eval_batch_size", 8), evaluation=True)
        if split is not None
        else None
    )


# Where it does not fit


def _advise(
    job: TrainJob, weights: Weights, setting: Setting, traces: _Traces, checkpointing: bool, rows: int, room: float
) -> str:
    """The setting with the fewest changes that fits into `room` bytes, in a line."""
    accumulation = job.gradient_accumulation_steps

    def needs(changed: Setting, recomputes: bool, fewer: int) -> float:
        parts = _most(weights, changed, traces, recomputes, fewer)
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
