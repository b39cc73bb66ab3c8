"""Causal language models: plain text, completions to prompts, chats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.tasks.base import (
    IGNORED,
    CollateContext,
    Columns,
    Encoded,
    Lengths,
    Metrics,
    Packing,
    Place,
    attention_mask,
    check_text,
    pad,
    unicode_text,
)
from raytrain_nlp.tasks.language import chat
from raytrain_nlp.tasks.language.continuation import Continues, encode_text_prompts, last_tokens
from raytrain_nlp.tasks.language.infilling import MARKS, Infilling, mark_tokens
from raytrain_nlp.tasks.truncation import FULL, full_lengths

_MAX_EXPONENT = 700


class CausalLmTask(Continues):
    """See `tasks.base.Task`."""

    shifts_labels = True
    scores_labels = False

    def __init__(self, config: CausalLm):
        self.config = config
        self.kind = config.kind
        columns: dict[str, list[str | None]] = {
            "text": [config.text_column or "text"],
            "completion": [config.prompt_column, config.completion_column],
            "messages": [config.messages_column],
        }
        self.columns = [column for column in columns[self.kind] if column is not None]
        self._packing = config.packing or ("concat" if self.kind == "text" else "none")
        self._append_eos = (
            config.append_eos
            if config.append_eos is not None
            else self.kind == "completion" or self._packing == "best_fit"
        )
        self.added_tokens = mark_tokens(config)

    def required_columns(self) -> list[str]:
        return list(self.columns)

    def check_row(self, values: dict[str, Any]) -> str | None:
        if self.kind == "messages":
            return chat.check_messages(values, self.columns[0])
        # concatenated plain text keeps its empty lines, as in run_clm.py; a row of its own must not be empty
        if self.kind == "text" and self._packing == "concat" and isinstance(values.get(self.columns[0]), str):
            return None
        return next((reason for column in self.columns if (reason := check_text(values, column))), None)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        if self.kind == "messages":
            yield from (unicode_text(message["content"]) for message in values[self.columns[0]])
        else:
            yield from (unicode_text(values[column]) for column in self.columns)

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        if self.kind == "messages" and not tokenizer.chat_template:
            return "has no chat template, which `messages` need"
        return (
            "has no end-of-sequence token, which task.append_eos needs"
            if self._append_eos and tokenizer.eos_token_id is None
            else None
        )

    def packing(self, max_length: int) -> Packing | None:
        return None if self._packing == "none" else Packing(self._packing, self.config.block_size or max_length)

    def lengths(self, max_length: int, split: str) -> Lengths:
        return Lengths(max_length if self._packing == "none" else None)

    # Tokens. The column `targets` is 1 for tokens that the loss covers, else 0; absent where it covers all.

    def encode_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """Leaves out rows in which the loss covers no token, as where truncation has cut off the whole answer."""
        encoded = super().encode_rows(rows, tokenizer, lengths)
        if lengths.source is None:  # packed: nothing is cut
            return encoded
        columns = encoded.columns
        learned = (
            [any(row[1:]) for row in columns["targets"]]
            if "targets" in columns
            else [len(row) > 1 for row in columns.get("input_ids", [])]
        )
        kept = [place for place, row in enumerate(learned) if row]
        left = {encoded.rows[place] for place in kept}
        reasons = {
            row: self._unlearned(encoded, row, lengths.source) for row in dict.fromkeys(encoded.rows) if row not in left
        }
        columns = {name: [values[place] for place in kept] for name, values in columns.items()}
        return Encoded(columns, [encoded.rows[place] for place in kept], encoded.refused, reasons)

    def _unlearned(self, encoded: Encoded, row: int, length: int) -> str:
        longest = max(len(ids) for ids, of in zip(encoded.columns["input_ids"], encoded.rows, strict=True) if of == row)
        what = "the answer begins" if "targets" in encoded.columns else "what is to be predicted lies"
        return (
            f"{what} behind the first {length} tokens (data.max_length)"
            if longest >= length
            else "it has no token to learn"
        )

    def refusal(self, error: Exception) -> str:
        return chat.refusal(error) if self.kind == "messages" else super().refusal(error)

    def spread_note(self, count: int, data_rows: int, rows: int) -> str:
        return chat.spread_note(count, rows)

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self.encoded(rows, tokenizer, lengths).columns

    def encoded(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """A chat may become several rows of tokens."""
        if self.kind == "text":
            return Encoded(self._encode_texts(rows, tokenizer, lengths), list(range(len(rows))))
        if self.kind == "messages":
            made = [
                chat.encode_messages(row[self.columns[0]], tokenizer, self.config.completion_only_loss) for row in rows
            ]
        else:
            made = [[pair] for pair in self._encode_completions(rows, tokenizer)]
        ids, targets = ([pair[i][: lengths.source] for pairs in made for pair in pairs] for i in (0, 1))
        columns: Columns = {"input_ids": ids, FULL: [len(pair[0]) for pairs in made for pair in pairs]}
        columns |= {"targets": targets} if self.config.completion_only_loss else {}
        return Encoded(columns, [place for place, pairs in enumerate(made) for _ in pairs])

    def _encode_texts(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        """A sequence that is cut leaves room for the tokens that filling in the middle adds."""
        texts = [unicode_text(row[self.columns[0]]) for row in rows]
        room = MARKS if self.added_tokens else 0
        limit = None if lengths.source is None else max(lengths.source - room, 1)
        made = tokenizer(texts, truncation=limit is not None, max_length=limit, return_attention_mask=False)
        full = [length + room for length in full_lengths(tokenizer, made, (texts,), limit)]
        ids = made["input_ids"]
        if self.added_tokens:
            infilling = Infilling(self.config, tokenizer)
            ids = [infilling.apply(row, text) for row, text in zip(ids, texts, strict=True)]
        return {"input_ids": [self._ended(row, tokenizer, lengths) for row in ids], FULL: full}

    def _encode_completions(self, rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
        """Prompt and completion are tokenized apart, so that no token stands on both sides of the border."""
        prompts = encode_text_prompts([unicode_text(row[self.columns[0]]) for row in rows], tokenizer)
        completions = tokenizer(
            [unicode_text(row[self.columns[1]]) for row in rows], add_special_tokens=False, return_attention_mask=False
        )["input_ids"]
        completions = [self._ended(row, tokenizer, Lengths(None)) for row in completions]
        return [
            (prompt + completion, [0] * len(prompt) + [1] * len(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _ended(self, ids: list[int], tokenizer: Any, lengths: Lengths) -> list[int]:
        """With the end-of-sequence token, unless the row was cut before its end."""
        full = lengths.source is not None and len(ids) >= lengths.source
        return (
            [*ids, tokenizer.eos_token_id]
            if self._append_eos and not full and ids[-1:] != [tokenizer.eos_token_id]
            else ids
        )

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        packed = "position_ids" in columns
        rows, side = columns["input_ids"], "right" if packed else context.padding_side
        labels = pad(rows, IGNORED, side)
        if "targets" in columns:
            labels[pad(columns["targets"], 0, side) == 0] = IGNORED
        batch = {"input_ids": pad(rows, context.pad_token_id, side), "labels": labels}
        if packed:
            return {**batch, **_apart(columns["position_ids"], labels)}
        return {**batch, "attention_mask": attention_mask(rows, side)}

    # Model and figures

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """Of each row: tokens predicted right, and tokens predicted: int64 [rows, 2]."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        best, truth = logits[:, :-1].argmax(-1), labels[:, 1:]
        counted = truth != IGNORED
        import torch

        return torch.stack([((best == truth) & counted).sum(1), counted.sum(1)], dim=1)

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        return token_metrics

    def loss_figures(self, loss: float) -> Metrics:
        return perplexity(loss)

    # Prediction: what follows a text, a prompt or a chat

    def input_columns(self) -> list[str]:
        return self.columns[:1]

    def check_input(self, values: dict[str, Any]) -> str | None:
        if self.kind == "messages":
            return chat.check_messages(values, self.columns[0], answered=False)
        return check_text(values, self.columns[0])

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        if self.kind == "messages":
            return last_tokens([chat.encode_question(row[self.columns[0]], tokenizer) for row in rows], lengths)
        return last_tokens(
            encode_text_prompts([unicode_text(row[self.columns[0]]) for row in rows], tokenizer), lengths
        )


def token_metrics(prediction: Any) -> Metrics:
    """Share of tokens predicted right, and perplexity: e to the mean loss of a token."""
    right, counted = prediction.predictions.sum(axis=0)
    return {"accuracy": float(right / max(counted, 1)), **perplexity(float(np.mean(prediction.losses)))}


def perplexity(loss: float) -> Metrics:
    """e to the mean loss of a token."""
    return {"perplexity": math.exp(loss) if loss < _MAX_EXPONENT else math.inf}


def _apart(positions: list[np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of packed documents, and labels without the step from one document into the next.

    Models of transformers 5 read the borders from positions that start again, where no attention mask is given
    (`masking_utils.find_packed_sequence_indices`); for kernels that take no mask, `modeling.document_lengths` does.
    Padding is a document of its own, at the end of a row.
    """
    width = labels.shape[1]
    padded = np.stack([np.concatenate([row, np.arange(width - len(row), dtype=np.int32)]) for row in positions])
    labels[padded == 0] = IGNORED
    return {"position_ids": padded}
