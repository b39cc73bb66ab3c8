"""Masked language models. Which tokens are masked is drawn from (seed, epoch, row id): new in each epoch, the same
after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.language import MaskedLm
from raytrain_nlp.tasks.base import (
    IGNORED,
    CollateContext,
    Columns,
    Lengths,
    Metrics,
    Packing,
    Place,
    TaskDefaults,
    attention_mask,
    check_text,
    pad,
    unicode_text,
)
from raytrain_nlp.tasks.language.causal_lm import perplexity, token_metrics
from raytrain_nlp.tasks.truncation import FULL, full_lengths

_SPECIAL, _WORD, _INSIDE = 0, 1, 2
"""Values of the column `words`: special token (never masked), first token of a word, or a later token of it."""


class MaskedLmTask(TaskDefaults):
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForMaskedLM"
    auto_mapping = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
    peft_type = "FEATURE_EXTRACTION"
    """PEFT has no task type for masked language models; this one wraps the model without changing its outputs."""
    scores_labels = False

    def __init__(self, config: MaskedLm):
        self.config = config

    def required_columns(self) -> list[str]:
        return [self.config.text_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        if not self.config.line_by_line and isinstance(values.get(self.config.text_column), str):
            return None
        return check_text(values, self.config.text_column)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield unicode_text(values[self.config.text_column])

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        if tokenizer.mask_token_id is None:
            return "has no mask token"
        return (
            "is no fast tokenizer, which whole_word_mask needs"
            if self.config.whole_word_mask and not tokenizer.is_fast
            else None
        )

    def packing(self, max_length: int) -> Packing | None:
        return None if self.config.line_by_line else Packing("concat", self.config.block_size or max_length)

    def lengths(self, max_length: int, split: str) -> Lengths:
        return Lengths(max_length if self.config.line_by_line else None)

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        texts = [unicode_text(row[self.config.text_column]) for row in rows]
        encoded = tokenizer(
            texts, truncation=lengths.source is not None, max_length=lengths.source,
            return_special_tokens_mask=True, return_attention_mask=False,
        )  # fmt: skip
        columns: Columns = {
            "input_ids": encoded["input_ids"],
            "words": [],
            FULL: full_lengths(tokenizer, encoded, (texts,), lengths.source),
        }
        for i, special in enumerate(encoded["special_tokens_mask"]):
            words = encoded.word_ids(i) if self.config.whole_word_mask else range(len(special))
            before = [None, *words][: len(special)]
            marks = [
                _INSIDE if word == last and word is not None else _WORD
                for word, last in zip(words, before, strict=True)
            ]
            columns["words"].append(
                [_SPECIAL if skipped else mark for mark, skipped in zip(marks, special, strict=True)]
            )
        return columns

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        rows, labels = [], []
        for ids, words, row in zip(columns["input_ids"], columns["words"], place.rows, strict=True):
            masked, label = self._mask(ids, words, context, np.random.default_rng([place.seed, place.epoch, int(row)]))
            rows.append(masked)
            labels.append(label)
        side = context.padding_side
        return {
            "input_ids": pad(rows, context.pad_token_id, side),
            "attention_mask": attention_mask(rows, side),
            "labels": pad(labels, IGNORED, side),
        }

    def _mask(
        self, ids: np.ndarray, words: np.ndarray, context: CollateContext, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Devlin et al. 2019, section 3.1: of the chosen tokens 80 % are masked, 10 % are another token, 10 % stay."""
        word = np.cumsum(words != _INSIDE)  # number of the word a token is in; 0 where a block begins inside a word
        chosen = (random.random(len(words) + 1) < self.config.mlm_probability)[word] & (words != _SPECIAL)
        fate = random.random(len(ids))
        masked = np.where(chosen & (fate < 0.8), context.mask_token_id, ids)
        others = random.integers(context.vocab_size, size=len(ids))
        masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), others, masked)
        return masked, np.where(chosen, ids, IGNORED)

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """Of each row: tokens predicted right, and tokens predicted: int64 [rows, 2]."""
        import torch

        logits = logits[0] if isinstance(logits, tuple) else logits
        counted = labels != IGNORED
        return torch.stack([((logits.argmax(-1) == labels) & counted).sum(1), counted.sum(1)], dim=1)

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        return token_metrics

    def loss_figures(self, loss: float) -> Metrics:
        return perplexity(loss)

    # Prediction: the tokens behind the masks

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        texts = [unicode_text(row[self.config.text_column]) for row in rows]
        return {
            "input_ids": tokenizer(texts, truncation=True, max_length=lengths.source, return_attention_mask=False)[
                "input_ids"
            ]
        }

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        """Of each token its id, the likeliest one in its place, and the probability of that."""
        probabilities, best = model(**inputs).logits.float().softmax(-1).max(-1)
        return {"ids": inputs["input_ids"], "best": best, "probabilities": probabilities}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        """The text with its masks filled, the likeliest token of each mask and its probability."""
        masks = outputs["ids"] == tokenizer.mask_token_id
        filled = tokenizer.batch_decode(np.where(masks, outputs["best"], outputs["ids"]), skip_special_tokens=True)
        for text, mask, guess, score in zip(filled, masks, outputs["best"], outputs["probabilities"], strict=True):
            yield {
                "prediction": text,
                "tokens": [tokenizer.decode(int(token)).strip() for token in guess[mask]],
                "scores": score[mask].tolist(),
            }
