"""Text classification: one text or a pair of texts; one class, several classes or a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.classification import TextClassification
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
from raytrain_nlp.tasks.problem_types import MultiLabel, Regression, SingleLabel, glue_metrics, glue_names
from raytrain_nlp.tasks.truncation import FULL, full_lengths

_PROBLEMS: dict[str, Callable[[TextClassification], SingleLabel | Regression]] = {
    "single_label_classification": lambda config: SingleLabel(config.label_names),
    "multi_label_classification": lambda config: MultiLabel(config.label_names, bool(config.multi_hot)),
    "regression": lambda config: Regression(),
}


class TextClassificationTask(TaskDefaults):
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForSequenceClassification"
    auto_mapping = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "SEQ_CLS"
    rows_weigh = True

    def __init__(self, config: TextClassification):
        self.config = config
        self.problem = _PROBLEMS[config.problem_type](config)
        self.label_column = None if config.problem_type == "regression" else config.label_column
        self.single_class = self.problem.single_class
        self.prediction_columns = ("prediction", "probabilities") if self.label_column else ("prediction",)

    def required_columns(self) -> list[str]:
        return [*self.config.text_columns, self.config.label_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        if reason := self.check_input(values):
            return reason
        column = self.config.label_column
        if column not in values:
            return f"field '{column}' is missing"
        reason = self.problem.check(values[column])
        return f"field '{column}' {reason}" if reason else None

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield from (text for (text,) in self._segments([values]))

    def _segments(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        """The texts of rows: one list, or two of pairs."""
        texts = [[unicode_text(row[column]) for row in rows] for column in self.config.text_columns]
        delimiter = self.config.text_column_delimiter
        return texts if delimiter is None else [list(map(delimiter.join, zip(*texts, strict=True)))]

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        labels = [self.problem.stored(row[self.config.label_column]) for row in rows]
        return {**self.encode_inputs(rows, tokenizer, lengths), "label": labels}

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        return {
            **self.collate_inputs(columns, context),
            "labels": self.problem.tensor(columns["label"], context.label_ids),
        }

    def classes(self, columns: Columns) -> Iterable[str]:
        return self.problem.classes(columns["label"])

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return self.problem.model_kwargs(labels)

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            metrics = self.problem.metrics(_logits(prediction.predictions), prediction.label_ids, labels)
            metrics = glue_metrics(self.config.glue, metrics) if self.config.glue else metrics
            return {name: float(value) for name, value in metrics.items()}

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return glue_names(self.config.glue) if self.config.glue else self.problem.metric_names(labels)

    def build_report(self, predictions: Any, truth: Any, labels: list[str]) -> dict[str, Any]:
        return self.problem.report(_logits(predictions), truth, labels)

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        for value, row in zip(truth, self.problem.rows(_logits(predictions), labels), strict=True):
            yield {"label": self.problem.truth(value, labels), **row}

    # Prediction

    def input_columns(self) -> list[str]:
        return list(self.config.text_columns)

    def check_input(self, values: dict[str, Any]) -> str | None:
        """Of columns that are joined some may be blank."""
        columns, joined = self.config.text_columns, self.config.text_column_delimiter is not None
        reasons = {column: check_text(values, column) for column in columns}
        if joined and any(reason is None for reason in reasons.values()):
            reasons = {
                column: None if isinstance(values.get(column), str) else reason for column, reason in reasons.items()
            }
        return next((reason for reason in reasons.values() if reason), None)

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        texts = self._segments(rows)
        encoded = tokenizer(*texts, truncation=True, max_length=lengths.source, return_attention_mask=False)
        columns = {key: list(encoded[key]) for key in encoded if key in ("input_ids", "token_type_ids")}
        columns[FULL] = full_lengths(tokenizer, encoded, tuple(texts), lengths.source)
        if lengths.ends is not None:
            _spell_out(columns, texts, tokenizer, lengths)
        return columns

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        return {"logits": model(**inputs).logits.float()}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from self.problem.rows(outputs["logits"], labels)


def _spell_out(columns: Columns, texts: list[list[str]], tokenizer: Any, lengths: Lengths) -> None:
    """Tokenize an end-of-sequence token that is spelt out in a text as plain text, in `columns`. Only the tokens that
    the tokenizer adds itself stay special.
    """
    usual = list(tokenizer(*(["a"] for _ in texts))["input_ids"][0]).count(lengths.ends)
    odd = [i for i, row in enumerate(columns["input_ids"]) if list(row).count(lengths.ends) != usual]
    if not odd:
        return
    again = tokenizer(
        *([text[i] for i in odd] for text in texts),
        truncation=True,
        max_length=lengths.source,
        return_attention_mask=False,
        split_special_tokens=True,
    )
    for number, i in enumerate(odd):
        row = list(again["input_ids"][number])
        extra = max(row.count(lengths.ends) - usual, 0)  # of a tokenizer that cannot spell it
        places = [place for place, token in enumerate(row) if token == lengths.ends][:extra]
        for key in ("input_ids", "token_type_ids"):
            if key in columns:
                columns[key][i] = [token for place, token in enumerate(again[key][number]) if place not in places]


def _logits(predictions: Any) -> np.ndarray:
    """Of what a model gives, which may be a tuple."""
    return predictions[0] if isinstance(predictions, tuple) else predictions
