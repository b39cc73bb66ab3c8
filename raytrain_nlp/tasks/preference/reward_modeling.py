"""Reward models: a score for a text, learned from pairs of a better and a worse one, as `RewardTrainer` of TRL does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.preference import RewardModeling
from raytrain_nlp.tasks.base import (
    CollateContext,
    Columns,
    Encoded,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
)
from raytrain_nlp.tasks.language import chat
from raytrain_nlp.tasks.objective import Objective, joined_figures
from raytrain_nlp.tasks.preference import rows as reading
from raytrain_nlp.tasks.preference.sequences import join_sequences, longest, stack_sequences
from raytrain_nlp.tasks.truncation import FULL, KEPT

_MARGIN = "margin"


class RewardModelingTask(TaskDefaults):
    """See `tasks.base.Task`. The model is a sequence classifier with one output."""

    auto_model = "AutoModelForSequenceClassification"
    auto_mapping = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "SEQ_CLS"
    tokenizer_kind = "decoder"
    rows_weigh = True
    fills_rows = True
    prediction_columns: tuple[str, ...] = ("score",)

    def __init__(self, config: RewardModeling):
        self.config = config
        self.drops_out = not config.disable_dropout
        self._pair = (config.prompt_column, config.chosen_column, config.rejected_column)
        self.input_choice = (config.text_column, config.chosen_column)

    def build_objective(self) -> Objective:
        from raytrain_nlp.tasks.preference.objectives import build_objective

        return build_objective(self.config)

    def required_columns(self) -> list[str]:
        margin = [self.config.margin_column] if self.config.margin_column else []
        return [self.config.chosen_column, self.config.rejected_column, *margin]

    def check_row(self, values: dict[str, Any]) -> str | None:
        reason = reading.check_pair(values, *self._pair)
        if reason or self.config.margin_column is None:
            return reason
        return _check_number(values, self.config.margin_column)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield from (text for column in self._pair for text in reading.texts_in(values.get(column)))

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return reading.check_tokenizer(tokenizer)

    def refusal(self, error: Exception) -> str:
        return chat.refusal(error) if type(error).__module__.startswith("jinja2") else super().refusal(error)

    # Tokens

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self.encode_rows(rows, tokenizer, lengths).columns

    def encode_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """Leaves out rows with a text that is too long, as TRL does: its end, which is scored, would be cut off."""
        refused, unlearned, kept, made = {}, {}, [], []
        for place, row in enumerate(rows):
            prompt = self._prompt(row)
            try:
                pair = [reading.encode_whole(prompt, row[column], tokenizer) for column in self._pair[1:]]
            except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
                refused[place] = self.refusal(error)
                continue
            if lengths.source is not None and max(map(len, pair)) > lengths.source:
                unlearned[place] = f"a text is longer than {lengths.source} tokens (data.max_length)"
            else:
                kept.append(place)
                made.append(pair)
        sizes = longest(made)
        columns = {**join_sequences(made, tokenizer.pad_token_id), FULL: sizes, KEPT: sizes}
        if self.config.margin_column:
            columns[_MARGIN] = [float(rows[place][self.config.margin_column]) for place in kept]
        return Encoded(columns, kept, refused, unlearned)

    def _prompt(self, row: dict[str, Any]) -> Any:
        """The row's prompt, or nothing of the kind that its texts are."""
        if reading.has_prompt(row, self.config.prompt_column):
            return row[self.config.prompt_column]
        return [] if isinstance(row.get(self.config.chosen_column), list) else ""

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        batch = stack_sequences(columns, context.pad_token_id)
        margins = columns.get(_MARGIN, [0.0] * len(batch["input_ids"]))
        return {**batch, "labels": np.array(margins, dtype=np.float32)}

    # Model and figures

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return {"num_labels": 1}

    def forward_kwargs(self) -> dict[str, Any]:
        return {"use_cache": False}

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        objective = self.build_objective()

        def compute_metrics(prediction: Any) -> Metrics:
            rewards = np.asarray(prediction.predictions)[:, :2]
            bounds = {"min_reward": float(rewards.min()), "max_reward": float(rewards.max())}
            return {**joined_figures(objective, prediction.predictions), **bounds}

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        for chosen, rejected, _ in np.asarray(predictions, dtype=np.float64).tolist():
            yield reading.scored_pair(chosen, rejected)

    # Prediction: the score of a text

    def input_columns(self) -> list[str]:
        return []

    def check_input(self, values: dict[str, Any]) -> str | None:
        column = self._scored(values)
        prompt = self.config.prompt_column
        given = values[prompt] if reading.has_prompt(values, prompt) else values.get(column)
        reason = reading.check_prompt(values, prompt) if reading.has_prompt(values, prompt) else None
        return reason or reading.check_completion(values, column, isinstance(given, list))

    def _scored(self, values: dict[str, Any]) -> str:
        """The column that is scored: of the text, or of a pair the better one."""
        config = self.config
        return config.text_column if values.get(config.text_column) is not None else config.chosen_column

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        made = []
        for row in rows:
            scored = row[self._scored(row)]
            prompt = row.get(self.config.prompt_column)
            whole = reading.encode_whole(
                ([] if isinstance(scored, list) else "") if prompt is None else prompt, scored, tokenizer
            )
            made.append(whole[-lengths.source :] if lengths.source else whole)
        return {"input_ids": made}

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        return super().collate_inputs(columns, replace(context, padding_side="right"))

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        return {"logits": model(**inputs).logits.float()}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from ({"score": float(value)} for value in outputs["logits"].reshape(-1))


def _check_number(values: dict[str, Any], column: str) -> str | None:
    """Why a field is no finite number, or None."""
    value = values.get(column)
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and math.isfinite(value)
    return None if number else f"field '{column}' is {'null' if value is None else repr(value)[:40]}, not a number"
