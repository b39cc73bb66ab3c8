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
    """Of one micro-batch; arrays and tensors have its rows first."""

    rows: np.ndarray
    """Row ids: int64 [rows]."""
    weight: int
    loss: float | None
    own: Any
    """What the task's figures read: NumPy, or a tuple of it."""
    labels: Any
    shown: Any = None
    """What the user's function reads, and `predict` returns; None: as `own`."""
    inputs: Any = None
    """The model's main input, or with `batch_eval_metrics` all of them."""

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
    """All parts as arrays in the order of the rows."""

    def __init__(self, parts: list[Part]):
        self._parts = parts
        self.rows = np.concatenate([part.rows for part in parts])
        self._order = np.argsort(self.rows, kind="stable")

    def of(self, name: str) -> Any:
        """An attribute of the parts; rows of unequal width are filled with -100. None where there is none."""
        return join([getattr(part, name) for part in self._parts], self._order)

    def losses(self) -> np.ndarray:
        """The mean loss of its micro-batch for each row, as `Trainer` repeats it: float32 [rows]."""
        return np.concatenate([np.full(len(part.rows), part.loss or 0.0, dtype=np.float32) for part in self._parts])[
            self._order
        ]

    def prediction(self, wanted: list[str], batch_rows: int | None) -> EvalPrediction:
        """What the user's function gets.

        Args:
            wanted: `include_for_metrics`.
            batch_rows: None: arrays of all rows; else lists of arrays of so many rows (`eval_do_concat_batches:
                false`).
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
    """The parts of one batch, as tensors: what the user's function gets with `batch_eval_metrics`."""
    joined = Joined(parts)
    values = {
        "predictions": joined.of("predictions"),
        "label_ids": joined.of("labels"),
        "losses": joined.losses() if "loss" in wanted else None,
    }
    values["inputs"] = joined.of("inputs") if "inputs" in wanted else None
    return EvalPrediction(**{name: _to_tensors(value) for name, value in values.items()})


def join(values: list[Any], order: np.ndarray) -> Any:
    """Arrays of batches, or tuples or dicts of them, to one array in row order; rows of unequal width are filled with
    -100.
    """
    first = values[0]
    if isinstance(first, dict):
        return {name: join([value[name] for value in values], order) for name in first}
    if isinstance(first, tuple):
        return tuple(join([value[i] for value in values], order) for i in range(len(first)))
    if first is None:
        return None
    if first.ndim > 1 and len({value.shape[1] for value in values}) > 1:
        width = max(value.shape[1] for value in values)
        values = [
            np.pad(value, [(0, 0), (0, width - value.shape[1])] + [(0, 0)] * (value.ndim - 2), constant_values=IGNORED)
            for value in values
        ]
    return np.concatenate(values)[order]


def to_numpy(value: Any) -> Any:
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
    """Consecutive batches; columns that are filled up in all rows of one are cut off, as if it had been filled up
    alone.
    """
    if isinstance(value, tuple):
        yield from zip(*(_cut(item, batch_rows) for item in value), strict=True)
        return
    for start in range(0, len(value), batch_rows):
        batch = value[start : start + batch_rows]
        if batch.ndim > 1:
            used = (batch != IGNORED).reshape(len(batch), batch.shape[1], -1).any(axis=(0, 2))
            batch = batch[:, : int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0]
        yield batch


class NamedLogits:
    """The logits of the newest forward by their name: families put router losses before them, and encoder states
    behind.
    """

    def __init__(self) -> None:
        self._logits: torch.Tensor | None = None

    @contextlib.contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """While inside, forwards of the model are seen."""
        handle = model.register_forward_hook(self._see)
        try:
            yield
        finally:
            handle.remove()
            self._logits = None

    def first(self, outputs: Any) -> Any:
        """What `prediction_step` returned as logits, with them before everything else; numbers of a whole batch are
        none of a row's, and left out.
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
