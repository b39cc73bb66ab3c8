"""What evaluation keeps of each micro-batch, and how the parts of all ranks become one `EvalPrediction`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

IGNORED = -100


@dataclass(frozen=True)
class Part:
    """What evaluation keeps of one micro-batch. The first dimension of every array is the micro-batch's rows."""

    rows: np.ndarray
    """Row ids: int64 [rows]."""
    weight: int
    """Number of rows or predicted tokens that `loss` is a mean over."""
    loss: float | None
    """Mean loss; None where the rows have no labels."""
    own: Any
    """Input of the task's own metrics: an array, a tuple of arrays, or None without labels."""
    labels: Any
    shown: Any = None
    """Input of the user's `compute_metrics`, and what `predict` returns; None where both use `own`."""
    inputs: Any = None
    """The model's main input, or with `batch_eval_metrics` a dict of all inputs; None where no metric asks for them."""

    @property
    def predictions(self) -> Any:
        return self.own if self.shown is None else self.shown


def mean_loss(parts: list[Part]) -> float | None:
    """The mean over rows or predicted tokens; None where rows have no labels."""
    known = [(part.loss, part.weight) for part in parts if part.loss is not None]
    return (
        sum(loss * weight for loss, weight in known if weight) / max(sum(weight for _, weight in known), 1)
        if known
        else None
    )


class Joined:
    """The parts of all ranks, joined into arrays in the order of the row ids."""

    def __init__(self, parts: list[Part]):
        self._parts = parts
        rows = np.concatenate([part.rows for part in parts])
        self._order = np.argsort(rows, kind="stable")
        self.rows = rows[self._order]

    def of(self, name: str) -> Any:
        """The attribute `name` of all parts, joined as `join` does; None where the parts hold None."""
        return join([getattr(part, name) for part in self._parts], self._order)

    def losses(self) -> np.ndarray:
        """For each row the mean loss of its micro-batch, as `Trainer` reports it for `include_for_metrics`: float32
        [rows].
        """
        return np.concatenate([np.full(len(part.rows), part.loss or 0.0, dtype=np.float32) for part in self._parts])[
            self._order
        ]

    def prediction(self, wanted: list[str], batch_rows: int | None) -> EvalPrediction:
        """The argument of the user's `compute_metrics`.

        Args:
            wanted: `TrainingArguments.include_for_metrics`.
            batch_rows: rows of each batch where the function gets lists of batches (`eval_do_concat_batches: false`);
                None where it gets one array of all rows.
        """
        values = {"predictions": self.of("predictions"), "label_ids": self.of("labels")}
        values |= {"inputs": self.of("inputs")} if "inputs" in wanted else {}
        values |= {"losses": self.losses()} if "loss" in wanted else {}
        if batch_rows:
            values = {
                name: list(_cut(value, batch_rows)) if value is not None else None for name, value in values.items()
            }
        return EvalPrediction(**values)


def batch_prediction(parts: list[Part], wanted: list[str]) -> EvalPrediction:
    """The argument of the user's `compute_metrics` with `batch_eval_metrics`: the parts of one batch, as CPU tensors.

    Args:
        parts: one part for each rank that has rows of the batch.
        wanted: `TrainingArguments.include_for_metrics`.
    """
    joined = Joined(parts)
    values = {
        "predictions": joined.of("predictions"),
        "label_ids": joined.of("labels"),
        "losses": joined.losses() if "loss" in wanted else None,
    }
    values["inputs"] = joined.of("inputs") if "inputs" in wanted else None
    return EvalPrediction(**{name: _to_tensors(value) for name, value in values.items()})


def join(values: list[Any], order: np.ndarray) -> Any:
    """Concatenate the arrays of several batches along the rows and put the rows in `order`.

    Args:
        values: for each batch an array [rows, ...], or None, or a tuple or dict of such. Where batches differ in
            another dimension than the first, narrower ones are padded with -100 on the right.
        order: int64 [all rows], indices into the concatenated rows.
    """
    first = values[0]
    if isinstance(first, dict):
        return {name: join([value[name] for value in values], order) for name in first}
    if isinstance(first, tuple):
        return tuple(join([value[i] for value in values], order) for i in range(len(first)))
    if first is None:
        return None
    if len({value.shape[1:] for value in values}) > 1:
        most = np.max([value.shape[1:] for value in values], axis=0)
        values = [
            np.pad(value, [(0, 0), *((0, gap) for gap in most - value.shape[1:])], constant_values=IGNORED)
            for value in values
        ]
    return np.concatenate(values)[order]


def to_numpy(value: Any) -> Any:
    """Copy a tensor, or a dict, list or tuple of tensors, to NumPy on CPU. Floating tensors become float32 (NumPy lacks
    bfloat16), lists become tuples, None stays None.
    """
    if isinstance(value, dict):
        return {name: to_numpy(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_numpy(item) for item in value)
    return None if value is None else value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()


def _to_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_tensors(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_to_tensors(item) for item in value)
    return None if value is None else torch.from_numpy(np.ascontiguousarray(value))


def _cut(value: Any, batch_rows: int) -> Iterator[Any]:
    """Consecutive batches of `batch_rows` rows, each as wide as if it had been padded alone: in each dimension but the
    first, what is -100 at the end of all of its rows is cut off.
    """
    if isinstance(value, tuple):
        yield from zip(*(_cut(item, batch_rows) for item in value), strict=True)
        return
    for start in range(0, len(value), batch_rows):
        batch = value[start : start + batch_rows]
        used = batch != IGNORED
        for axis in range(1, batch.ndim):
            there = np.flatnonzero(used.any(axis=tuple(other for other in range(batch.ndim) if other != axis)))
            batch = batch.take(range(int(there[-1]) + 1 if len(there) else 0), axis=axis)
            used = used.take(range(batch.shape[axis]), axis=axis)
        yield batch


class NamedLogits:
    """Remembers which output of the last forward the model calls `logits`.

    `Trainer.prediction_step` returns the outputs as a tuple without names, in which some model families put router
    losses before the logits, and others encoder states behind them.
    """

    def __init__(self) -> None:
        self._logits: torch.Tensor | None = None

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """While inside, a forward hook on `model` records its logits."""
        handle = model.register_forward_hook(self._see)
        try:
            yield
        finally:
            handle.remove()
            self._logits = None

    def first(self, outputs: Any) -> Any:
        """Put the recorded logits first in the tuple that `prediction_step` returned as logits. Tensors of shape []
        (losses of a whole batch) are left out, because they have no rows. Other values are returned unchanged.
        """
        if not isinstance(outputs, tuple) or self._logits is None:
            return outputs
        known = self._logits.data_ptr()
        rest = (
            value
            for value in outputs
            if not (isinstance(value, torch.Tensor) and (value.dim() == 0 or value.data_ptr() == known))
        )
        return self._logits, *rest

    def _see(self, module: Any, args: Any, output: Any) -> None:
        found = output.get("logits") if isinstance(output, Mapping) else None
        self._logits = found.detach() if isinstance(found, torch.Tensor) else None
