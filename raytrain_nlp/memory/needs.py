"""What one setting needs: the parts of a rank's memory at the moment when it needs most, by ZeRO stage, micro-batch and
gradient checkpointing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.split import Split
from raytrain_nlp.memory.activations import StepTrace, trace_step
from raytrain_nlp.memory.widest_batch import Shape, checkpoint_activations, widest_shape
from raytrain_nlp.memory.zero import Setting, Weights, step_memory
from raytrain_nlp.tasks.objective import Objective

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers", "process")
USABLE = 0.95
"""Usable share of a worker's memory: the rest is for rounding and fragmentation in allocators."""


class Traces:
    """Steps of the model by gradient checkpointing, traced when first asked for."""

    def __init__(
        self,
        model: Any,
        use_gpu: bool,
        shape: Shape,
        eval_shape: Shape | None,
        chunked: tuple[bool, bool] = (False, False),
        objective: Objective | None = None,
    ):
        """`chunked`: are losses computed without logits, in training and in evaluation? `objective`: the task's loss,
        where the model does not compute it.
        """
        self._objective = objective
        self._chunked = chunked
        self._model, self._use_gpu, self._shape, self._eval_shape = model, use_gpu, shape, eval_shape
        self._found: dict[tuple[bool, bool, int], StepTrace] = {}
        self._evaluations: dict[bool, StepTrace] = {}
        self.failure: str | None = None
        """Why a step could not be traced."""

    def train(self, checkpointing: bool, rows: int, autocast: bool = False) -> StepTrace:
        """A step of at most as many rows as the widest micro-batch has; with `autocast` of weights in fp32."""
        most, key = self._shape.rows, (autocast, checkpointing, rows)
        if rows in (most, 1):
            return self._trace(autocast, checkpointing, rows)
        if key not in self._found:
            most_trace, share = self._trace(autocast, checkpointing, most), (rows - 1) / (most - 1)
            self._found[key] = self._trace(autocast, checkpointing, 1).towards(most_trace, share)
        return self._found[key]

    def _trace(self, autocast: bool, checkpointing: bool, rows: int) -> StepTrace:
        key = autocast, checkpointing, rows
        if key not in self._found:
            with checkpoint_activations(self._model, checkpointing):
                inputs = {
                    name: value[:rows] if hasattr(value, "dtype") else value
                    for name, value in self._shape.tensors.items()
                }
                self._found[key] = self._try(inputs, self._shape.padded, autocast)
        return self._found[key]

    def evaluation(self, autocast: bool = False) -> StepTrace | None:
        """One of the widest batch of the validation rows."""
        if self._eval_shape is not None and autocast not in self._evaluations:
            self._evaluations[autocast] = self._try(
                self._eval_shape.tensors, self._eval_shape.padded, autocast, train=False
            )
        return self._evaluations.get(autocast)

    def _try(self, inputs: dict[str, Any], padded: bool, autocast: bool, train: bool = True) -> StepTrace:
        try:
            with _weights_in(self._model, torch.float32) if autocast else contextlib.nullcontext():
                return trace_step(
                    self._model, inputs, padded=padded, use_gpu=self._use_gpu, train=train,
                    chunked_loss=self._chunked[0 if train else 1], autocast=autocast, objective=self._objective,
                )  # fmt: skip
        except Exception as error:  # whatever a model does that cannot be done without memory  # noqa: BLE001
            if autocast:  # with types that only a real autocast brings together
                return self._try(inputs, padded, False, train)
            self.failure = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            return StepTrace(((0, 0, 0),), 0)


@contextlib.contextmanager
def _weights_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """While inside, the weights of a model on the meta device are of `dtype`."""
    before = {parameter: parameter.data for parameter in model.parameters()}
    for parameter, data in before.items():
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data


def most_parts(weights: Weights, setting: Setting, traces: Traces, checkpointing: bool, rows: int) -> dict[str, float]:
    """Parts of a training step, or of an evaluation where that needs more."""
    found = [traces.train(checkpointing, rows, setting.autocasts), traces.evaluation(setting.autocasts)]
    return max(
        (step_memory(weights, setting, trace) for trace in found if trace),
        key=lambda parts: sum(parts[name] for name in PARTS[:-1]),
    )


def checkpoints(job: TrainJob) -> bool:
    values = job.arguments()
    return bool(values.get("gradient_checkpointing") or values.get("activation_checkpointing"))


def chunked_losses(job: TrainJob, split: Split) -> tuple[bool, bool]:
    """Are losses computed without logits, in training and in evaluation? A class of the user's may ask for logits."""
    own = split.task.build_objective() is not None  # whose evaluations read no logits either, but under DDP
    inside = not own or job.deepspeed.enabled or job.workers.num_workers == 1
    chunked = job.chunks_loss and job.trainer.class_ is None and split.task.scores_tokens and inside
    return chunked, chunked and (own or bool(job.arguments().get("prediction_loss_only")))


def eval_shape(job: TrainJob, split: Split | None) -> Shape | None:
    return (
        widest_shape(split, job, job.arguments().get("per_device_eval_batch_size", 8), evaluation=True)
        if split is not None
        else None
    )
