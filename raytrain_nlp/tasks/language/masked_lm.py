"""Masked language models. Which tokens are masked is drawn from (seed, epoch, row id): new in each epoch, the same
after a resume.
"""

from __future__ import annotations

import numpy as np

from raytrain_nlp.config.tasks.language import MaskedLm
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Columns, Place, attention_mask, pad
from raytrain_nlp.tasks.language.masking import INSIDE, SPECIAL, MaskingTask


class MaskedLmTask(MaskingTask):
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForMaskedLM"
    auto_mapping = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"

    def __init__(self, config: MaskedLm):
        super().__init__(config)
        self.whole_words, self._share = config.whole_word_mask, config.mlm_probability

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
        word = np.cumsum(words != INSIDE)  # number of the word a token is in; 0 where a block begins inside a word
        chosen = (random.random(len(words) + 1) < self._share)[word] & (words != SPECIAL)
        fate = random.random(len(ids))
        masked = np.where(chosen & (fate < 0.8), context.mask_token_id, ids)
        others = random.integers(context.vocab_size, size=len(ids))
        masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), others, masked)
        return masked, np.where(chosen, ids, IGNORED)
