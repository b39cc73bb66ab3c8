"""Text classification: one text or a pair of texts, one label of two or more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks import TextClassification
from raytrain_nlp.tasks.base import CollateContext, Columns, Metrics, attention_mask, pad


class TextClassificationTask:
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForSequenceClassification"

    def __init__(self, config: TextClassification):
        self.config = config
        self.label_column = config.label_column

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
        return self._check_label(values)

    def _check_label(self, values: dict[str, Any]) -> str | None:
        column = self.config.label_column
        label = values.get(column)
        if column not in values:
            return f"field '{column}' is missing"
        if label is None or label == "":
            return f"field '{column}' is null or empty"
        if not isinstance(label, (str, int, bool)) and not (isinstance(label, float) and label.is_integer()):
            return f"field '{column}' is {type(label).__name__}, not an integer or text"
        if not _is_unicode(label_text(label)):
            return f"field '{column}' has a lone surrogate, which is no Unicode text"
        if self.config.label_names is not None and label_text(label) not in self.config.label_names:
            return f"label '{label_text(label)}' is not in task.label_names"
        return None

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> Columns:
        texts = [[row[column] for row in rows] for column in self.config.text_columns]
        # a lone surrogate is valid JSON but no text a tokenizer takes
        texts = [[text.encode("utf-8", "replace").decode("utf-8") for text in column] for column in texts]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        columns: Columns = {key: list(encoded[key]) for key in encoded if key in ("input_ids", "token_type_ids")}
        columns["label"] = [label_text(row[self.config.label_column]) for row in rows]
        return columns

    def collate(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        rows = columns["input_ids"]
        batch = {
            "input_ids": pad(rows, context.pad_token_id, context.padding_side),
            "attention_mask": attention_mask(rows, context.padding_side),
            "labels": np.array([context.label_ids[label] for label in columns["label"]], dtype=np.int64),
        }
        if "token_type_ids" in columns and "token_type_ids" in context.model_inputs:
            batch["token_type_ids"] = pad(columns["token_type_ids"], context.pad_token_type_id, context.padding_side).astype(np.int8)
        return batch

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def build_metrics(self, labels: list[str]) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

            logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
            best, truth = np.argmax(logits, axis=-1), prediction.label_ids
            metrics = {"accuracy": accuracy_score(truth, best)}
            if len(labels) == 2:  # as GLUE: F1 of label 1, and Matthews' correlation coefficient
                metrics["f1"] = f1_score(truth, best, zero_division=0)
                metrics["mcc"] = matthews_corrcoef(truth, best)
            else:
                metrics["f1"] = f1_score(truth, best, average="macro", labels=list(range(len(labels))), zero_division=0)
            return {name: float(value) for name, value in metrics.items()}

        return compute_metrics


def label_text(label: Any) -> str:
    """One spelling for 1, 1.0, True-as-1 and "1", so that JSON, CSV and Parquet agree."""
    if isinstance(label, (bool, float)):
        label = int(label)
    return str(label).strip()


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def sorted_labels(labels: list[str]) -> list[str]:
    """Labels in the order of their ids: by number where all are integers, else by text."""
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)
