"""Text classification: one text or a pair of texts; one class, several classes or a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks import TextClassification
from raytrain_nlp.tasks.base import CollateContext, Columns, Metrics, attention_mask, pad
from raytrain_nlp.tasks.problems import MultiLabel, Regression, SingleLabel, glue_metrics

_PROBLEMS = {
    "single_label_classification": lambda config: SingleLabel(config.label_names),
    "multi_label_classification": lambda config: MultiLabel(config.label_names),
    "regression": lambda config: Regression(),
}


class TextClassificationTask:
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForSequenceClassification"

    def __init__(self, config: TextClassification):
        self.config = config
        self.problem = _PROBLEMS[config.problem_type](config)
        self.label_column = None if config.problem_type == "regression" else config.label_column
        self.single_class = self.problem.single_class

    def required_columns(self) -> list[str]:
        return [*self.config.text_columns, self.config.label_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        for column in self.config.text_columns:
            if column not in values:
                return f"field '{column}' is missing"
            if values[column] is None:
                return f"field '{column}' is null"
            if not isinstance(values[column], str):
                return f"field '{column}' is {type(values[column]).__name__}, not text"
            if not values[column].strip():
                return f"field '{column}' is empty"
        column = self.config.label_column
        if column not in values:
            return f"field '{column}' is missing"
        reason = self.problem.check(values[column])
        return f"field '{column}' {reason}" if reason else None

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> Columns:
        texts = [[row[column] for row in rows] for column in self.config.text_columns]
        # a lone surrogate is valid JSON but no text a tokenizer takes
        texts = [[text.encode("utf-8", "replace").decode("utf-8") for text in column] for column in texts]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        columns: Columns = {key: list(encoded[key]) for key in encoded if key in ("input_ids", "token_type_ids")}
        columns["label"] = [self.problem.stored(row[self.config.label_column]) for row in rows]
        return columns

    def collate(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        rows = columns["input_ids"]
        batch = {
            "input_ids": pad(rows, context.pad_token_id, context.padding_side),
            "attention_mask": attention_mask(rows, context.padding_side),
            "labels": self.problem.tensor(columns["label"], context.label_ids),
        }
        if "token_type_ids" in columns and "token_type_ids" in context.model_inputs:
            batch["token_type_ids"] = pad(columns["token_type_ids"], context.pad_token_type_id, context.padding_side).astype(np.int8)
        return batch

    def classes(self, columns: Columns) -> Iterable[str]:
        return self.problem.classes(columns["label"])

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return self.problem.model_kwargs(labels)

    def build_metrics(self, labels: list[str]) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
            metrics = self.problem.metrics(logits, prediction.label_ids, labels)
            metrics = glue_metrics(self.config.glue, metrics) if self.config.glue else metrics
            return {name: float(value) for name, value in metrics.items()}

        return compute_metrics
