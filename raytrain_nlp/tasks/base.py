"""What a task is: everything that differs between text classification and the tasks to come, and nothing else.

`check_row` and `encode` run where data are prepared, `collate` where the feed runs (NumPy only: no torch is loaded there),
the rest in the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

Columns = dict[str, list]
Metrics = dict[str, float]


class Task(Protocol):
    """One NLP task, built from its section of the job."""

    auto_model: str
    """Name of the `transformers.AutoModelFor...` class."""
    label_column: str | None
    """Column whose values become classes, or None."""
    single_class: bool
    """Has each row exactly one class, so that always answering the most frequent one is a score to beat?"""

    def required_columns(self) -> list[str]:
        """Columns every row must have."""

    def check_row(self, values: dict[str, Any]) -> str | None:
        """Why a row is bad, or None."""

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> Columns:
        """Good rows to token columns; `input_ids` is the column lengths are taken from."""

    def classes(self, columns: Columns) -> Iterable[str]:
        """The classes in encoded rows, one for each time it occurs; nothing where `label_column` is None."""

    def collate(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        """Rows of the token store to the padded inputs of the model; shapes [rows, longest row]."""

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        """Arguments of the model class that come from the task."""

    def build_metrics(self, labels: list[str]) -> Callable[[Any], Metrics]:
        """A `compute_metrics` in Hugging Face's sense; names without the `eval_` prefix."""


class CollateContext:
    """What collating needs besides the rows; plain values, so that it travels to remote functions."""

    def __init__(self, pad_token_id: int, pad_token_type_id: int, padding_side: str, model_inputs: list[str], labels: list[str]):
        self.pad_token_id = pad_token_id
        self.pad_token_type_id = pad_token_type_id
        self.padding_side = padding_side
        self.model_inputs = model_inputs
        self.labels = labels
        self.label_ids = {name: i for i, name in enumerate(labels)}


def pad(rows: list[np.ndarray], value: int, side: str) -> np.ndarray:
    """Rows of tokens to one int32 array [rows, longest row], filled up with `value` on `side`."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), value, dtype=np.int32)
    for i, row in enumerate(rows):
        if side == "left":
            padded[i, width - len(row) :] = row
        else:
            padded[i, : len(row)] = row
    return padded


def attention_mask(rows: list[np.ndarray], side: str) -> np.ndarray:
    """1 for tokens, 0 for padding: int8 [rows, longest row]."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int8)
    return mask[:, ::-1].copy() if side == "left" else mask
