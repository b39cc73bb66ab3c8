"""What language models that predict masked tokens share: rows as tokens and words, figures, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.language import MaskedLm, PermutationLm
from raytrain_nlp.tasks.base import (
    IGNORED,
    Columns,
    Lengths,
    Metrics,
    Packing,
    TaskDefaults,
    check_text,
    unicode_text,
)
from raytrain_nlp.tasks.language.causal_lm import perplexity, token_metrics
from raytrain_nlp.tasks.truncation import FULL, full_lengths

SPECIAL, WORD, INSIDE = 0, 1, 2
"""Values of the column `words`: special token (never masked), first token of a word, or a later token of it."""


class MaskingTask(TaskDefaults):
    """A task but for its model and for `collate`; see `tasks.base.Task`."""

    peft_type = "FEATURE_EXTRACTION"
    """PEFT has no task type for masked language models; this one wraps the model without changing its outputs."""
    scores_labels = False
    whole_words = False
    """Are all tokens of a word masked, or none?"""

    def __init__(self, config: MaskedLm | PermutationLm):
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
            "is no fast tokenizer, which whole_word_mask needs" if self.whole_words and not tokenizer.is_fast else None
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
            words = encoded.word_ids(i) if self.whole_words else range(len(special))
            before = [None, *words][: len(special)]
            marks = [
                INSIDE if word == last and word is not None else WORD for word, last in zip(words, before, strict=True)
            ]
            columns["words"].append(
                [SPECIAL if skipped else mark for mark, skipped in zip(marks, special, strict=True)]
            )
        return columns

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
