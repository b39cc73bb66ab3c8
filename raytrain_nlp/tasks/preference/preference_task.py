"""Preference tuning of decoder models: DPO, ORPO and KTO, with rows, losses and figures as in TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from raytrain_nlp.config.lora import keeps_base
from raytrain_nlp.config.tasks.preference import Preference
from raytrain_nlp.tasks.base import CollateContext, Columns, Encoded, Lengths, Metrics, Place
from raytrain_nlp.tasks.language import chat
from raytrain_nlp.tasks.language.continuation import Continues, encode_text_prompts, last_tokens
from raytrain_nlp.tasks.objective import Objective, joined_figures
from raytrain_nlp.tasks.preference import rows as reading
from raytrain_nlp.tasks.preference.sequences import (
    PROMPT,
    common_start,
    join_sequences,
    longest,
    shortened,
    stack_sequences,
)
from raytrain_nlp.tasks.truncation import FULL, KEPT

_TRUTHS = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}
_PAIR = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
_ORPO = ("nll_loss", "log_odds_ratio", "log_odds_chosen")
_KTO = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl")
_LABEL = "label"


class PreferenceTask(Continues):
    """See `tasks.base.Task`. A row is two sequences: the prompt with the better and with the worse completion; with KTO
    the prompt with its completion, and with that of another row.
    """

    rows_weigh = True
    fills_rows = True
    scores_tokens = True

    def __init__(self, config: Preference):
        self.config = config
        self.drops_out = not config.disable_dropout
        self._pair = (config.prompt_column, config.chosen_column, config.rejected_column)
        self.input_choice = (config.prompt_column,) if config.unpaired else self._pair[:2]

    def build_objective(self) -> Objective:
        from raytrain_nlp.tasks.preference.objectives import build_objective

        return build_objective(self.config)

    def precomputes_reference(self, lora: dict[str, Any] | None) -> bool:
        asked = self.config.precompute_ref_log_probs
        return self.config.has_reference and (lora is None or not keeps_base(lora) if asked is None else asked)

    def required_columns(self) -> list[str]:
        config = self.config
        if config.unpaired:
            return [config.prompt_column, config.completion_column, config.label_column]
        return [config.chosen_column, config.rejected_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        config = self.config
        if not config.unpaired:
            return reading.check_pair(values, *self._pair)
        chats = isinstance(values.get(config.prompt_column), list)
        reason = reading.check_prompt(values, config.prompt_column)
        reason = reason or reading.check_completion(values, config.completion_column, chats)
        return reason or _check_truth(values, config.label_column)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        columns = (self.config.prompt_column, *self.required_columns())
        yield from (text for column in dict.fromkeys(columns) for text in reading.texts_in(values.get(column)))

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return reading.check_tokenizer(tokenizer)

    def refusal(self, error: Exception) -> str:
        return chat.refusal(error) if type(error).__module__.startswith("jinja2") else super().refusal(error)

    # Tokens

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self.encode_rows(rows, tokenizer, lengths).columns

    def encode_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """Leaves out rows whose prompt fills the whole length, as TRL does, and those without a completion."""
        refused, unlearned, kept = {}, {}, []
        for place, row in enumerate(rows):
            try:
                start, sequences = self._sequences(row, tokenizer)
            except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
                refused[place] = self.refusal(error)
                continue
            if lengths.source is not None and start >= lengths.source:
                unlearned[place] = f"the completions begin behind the first {lengths.source} tokens (data.max_length)"
            elif min(len(ids) for ids in sequences) <= start:
                unlearned[place] = "a completion has no token of its own"
            else:
                kept.append((place, start, sequences))
        made = self._with_others([(start, sequences) for _, start, sequences in kept])
        shorter = [shortened(sequences, lengths.source) for sequences in made]
        columns = {
            **join_sequences(shorter, tokenizer.pad_token_id),
            PROMPT: [start for _, start, _ in kept],
            FULL: longest(made),
            KEPT: longest(shorter),
        }
        if self.config.unpaired:
            columns[_LABEL] = [_truth(rows[place][self.config.label_column]) for place, _, _ in kept]
        return Encoded(columns, [place for place, _, _ in kept], refused, unlearned)

    def _sequences(self, row: dict[str, Any], tokenizer: Any) -> tuple[int, list[list[int]]]:
        """Tokens of the prompt, and the sequences of a row as they are given."""
        if self.config.unpaired:
            prompt, completions = row[self.config.prompt_column], [row[self.config.completion_column]]
        else:
            prompt, *completions = reading.read_pair(row, *self._pair)
        alone = reading.encode_prompt(prompt, tokenizer)
        sequences = [reading.encode_whole(prompt, completion, tokenizer) for completion in completions]
        return min(common_start(alone, ids) for ids in sequences), sequences

    def _with_others(self, rows: list[tuple[int, list[list[int]]]]) -> list[list[list[int]]]:
        """The sequences of all rows; with KTO each prompt with the completion of the row before it in its group, too,
        and that of the first with the last one's.
        """
        if self.config.loss_type != "kto":
            return [sequences for _, sequences in rows]
        made, size = [], self.config.kl_group_size
        for first in range(0, len(rows), size):
            group = rows[first : first + size]
            for (start, (whole,)), (other, (donor,)) in zip(group, [group[-1], *group[:-1]], strict=True):
                made.append([whole, whole[:start] + donor[other:]])
        return made

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        batch = stack_sequences(columns, context.pad_token_id)
        labels = columns.get(_LABEL, [1] * len(batch["input_ids"]))
        return {**batch, "labels": np.array(labels, dtype=np.int64)}

    # Figures

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        objective = self.build_objective()
        return lambda prediction: joined_figures(objective, prediction.predictions)

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        if self.config.unpaired:
            return _KTO if self.config.loss_type == "kto" else _KTO[:-1]
        return (*_PAIR, *_ORPO) if self.config.loss_type == "orpo" else _PAIR

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        """The rewards of each row; with KTO that of its completion."""
        beta, values = self.config.beta, np.asarray(predictions, dtype=np.float64)
        if self.config.unpaired:
            for row, label in zip(values, truth, strict=True):
                yield {"desirable": bool(label), "reward": beta * (row[0] - row[1])}
            return
        rewards = beta * (values[:, :2] - (values[:, 2:4] if self.config.has_reference else 0))
        for chosen, rejected in rewards.tolist():
            yield reading.scored_pair(chosen, rejected)

    # Prediction: what follows a prompt

    def input_columns(self) -> list[str]:
        return []

    def check_input(self, values: dict[str, Any]) -> str | None:
        config = self.config
        if config.unpaired or reading.has_prompt(values, config.prompt_column):
            return reading.check_prompt(values, config.prompt_column)
        return reading.check_pair(values, *self._pair)

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        prompts = []
        for row in rows:
            given = reading.has_prompt(row, self.config.prompt_column)
            prompt = row[self.config.prompt_column] if given else reading.read_pair(row, *self._pair)[0]
            if isinstance(prompt, list):
                prompts.append(chat.encode_question(prompt, tokenizer))
            else:
                prompts += encode_text_prompts([prompt], tokenizer)
        return last_tokens(prompts, lengths)


def _check_truth(values: dict[str, Any], column: str) -> str | None:
    """Why a field is neither true nor false, or None."""
    if column not in values:
        return f"field '{column}' is missing"
    value = values[column]
    known = isinstance(value, (bool, int, float, str, Decimal)) and str(value).strip().lower() in _TRUTHS
    return None if known else f"field '{column}' is {'null' if value is None else repr(value)[:40]}, not true or false"


def _truth(value: Any) -> int:
    return _TRUTHS[str(value).strip().lower()]
