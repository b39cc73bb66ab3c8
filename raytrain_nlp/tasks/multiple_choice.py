"""Multiple choice: one of several endings of a context, as in run_swag.py.

A row is a sequence for each ending, and is kept as one: the sequences side by side, each filled up to the longest of
the row, and `choice_lengths`. So a row is as long as what a batch of it alone costs, and plans by length and budgets of
padded tokens hold; the figures of tokens count what fills a row up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from raytrain_nlp.config.labels import label_text
from raytrain_nlp.config.tasks.choice import MultipleChoice
from raytrain_nlp.tasks.base import (
    CollateContext,
    Columns,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
    check_text,
    unicode_text,
)
from raytrain_nlp.tasks.truncation import FULL, KEPT, full_lengths

_LENGTHS = "choice_lengths"
"""Tokens of each sequence of a row."""
_TOKENS = ("input_ids", "token_type_ids")


class MultipleChoiceTask(TaskDefaults):
    """See `tasks.base.Task`. The label is a place in its own row and no class: the head has one output, whatever
    `id2label` says.
    """

    auto_model = "AutoModelForMultipleChoice"
    auto_mapping = "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES"
    peft_type = "SEQ_CLS"
    """PEFT has no type of its own for it; this one trains and saves the head, too."""
    rows_weigh = True
    fills_rows = True
    prediction_columns: tuple[str, ...] = ("prediction", "probabilities")

    def __init__(self, config: MultipleChoice):
        self.config = config
        self._choices = len(config.ending_columns)

    def required_columns(self) -> list[str]:
        return [*self.input_columns(), self.config.label_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        if reason := self.check_input(values):
            return reason
        column = self.config.label_column
        if column not in values:
            return f"field '{column}' is missing"
        label = values[column]
        if label is None or label == "":
            return f"field '{column}' is null or empty"
        if not isinstance(label, (str, int, float, Decimal)):
            return f"field '{column}' is {type(label).__name__}, not the number of an ending"
        if label_text(label) not in map(str, range(self._choices)):
            return f"field '{column}' is {str(label)[:40]!r}, none of the endings (0 to {self._choices - 1})"
        return None

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield from (unicode_text(values[column]) for column in self.input_columns())

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        encoded, texts = self._tokenized(rows, tokenizer, lengths)
        full = np.array(full_lengths(tokenizer, encoded, texts, lengths.source)).reshape(len(rows), -1)
        kept = np.array([len(ids) for ids in encoded["input_ids"]]).reshape(len(rows), -1)
        return {
            **self._columns(encoded, tokenizer),
            "label": [int(label_text(row[self.config.label_column])) for row in rows],
            FULL: full.max(axis=1).tolist(),
            KEPT: kept.max(axis=1).tolist(),
        }

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        return {**self.collate_inputs(columns, context), "labels": np.array(columns["label"], dtype=np.int64)}

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            return {"accuracy": float((_logits(prediction.predictions).argmax(-1) == prediction.label_ids).mean())}

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return ("accuracy",)

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        for value, row in zip(truth, self._rows(_logits(predictions)), strict=True):
            yield {"label": int(value), **row}

    # Prediction

    def input_columns(self) -> list[str]:
        start = [self.config.start_column] if self.config.start_column else []
        return [self.config.context_column, *start, *self.config.ending_columns]

    def check_input(self, values: dict[str, Any]) -> str | None:
        start = self.config.start_column
        for column in self.input_columns():
            if (reason := check_text(values, column)) and not (column == start and isinstance(values.get(start), str)):
                return reason
        return None

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self._columns(self._tokenized(rows, tokenizer, lengths)[0], tokenizer)

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        """Shapes [rows, endings, longest sequence]."""
        sizes = columns[_LENGTHS]
        parts = {
            name: [
                part[:size]
                for row, lengths in zip(columns[name], sizes, strict=True)
                for part, size in zip(row.reshape(self._choices, -1), lengths, strict=True)
            ]
            for name in _TOKENS
            if name in columns
        }
        batch = super().collate_inputs(parts, context)
        return {name: array.reshape(len(sizes), self._choices, -1) for name, array in batch.items()}

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        return {"logits": model(**inputs).logits.float()}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from self._rows(outputs["logits"])

    def _tokenized(
        self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths
    ) -> tuple[Any, tuple[list[str], list[str]]]:
        """The sequences of all rows one after the other, and the pairs of texts they are made of."""
        config, firsts, seconds = self.config, [], []
        for row in rows:
            start = row[config.start_column].strip() if config.start_column else ""
            for column in config.ending_columns:
                firsts.append(unicode_text(row[config.context_column]))
                seconds.append(unicode_text(f"{start} {row[column]}" if start else row[column]))
        encoded = tokenizer(firsts, seconds, truncation=True, max_length=lengths.source, return_attention_mask=False)
        return encoded, (firsts, seconds)

    def _columns(self, encoded: Any, tokenizer: Any) -> Columns:
        """One list of tokens a row."""
        count = self._choices
        columns: Columns = {name: [] for name in (*(name for name in _TOKENS if name in encoded), _LENGTHS)}
        for first in range(0, len(encoded["input_ids"]), count):
            sizes = [len(ids) for ids in encoded["input_ids"][first : first + count]]
            columns[_LENGTHS].append(sizes)
            for name, filler in zip(_TOKENS, (tokenizer.pad_token_id, 0), strict=True):
                if name in columns:
                    parts = encoded[name][first : first + count]
                    columns[name].append([t for part in parts for t in (*part, *[filler] * (max(sizes) - len(part)))])
        return columns

    def _rows(self, logits: np.ndarray) -> Iterator[dict[str, Any]]:
        """The number of the likeliest ending of each row, and the probability of each ending."""
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        for row in shifted / shifted.sum(axis=-1, keepdims=True):
            yield {
                "prediction": int(row.argmax()),
                "probabilities": dict(zip(self.config.ending_columns, row.tolist(), strict=True)),
            }


def _logits(predictions: Any) -> np.ndarray:
    """Of what a model gives, which may be a tuple."""
    return predictions[0] if isinstance(predictions, tuple) else predictions
