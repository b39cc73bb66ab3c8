"""Permutation language models (XLNet, Yang et al. 2019): spans of tokens are predicted in a random order, each token
from all that are not predicted and from those that come before it in that order.

Spans and order are drawn from (seed, epoch, row id), as `DataCollatorForPermutationLanguageModeling` of transformers
draws them, but over a row's own tokens: it is the same whatever the row is padded to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.language import PermutationLm
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Columns, Place, attention_mask, pad
from raytrain_nlp.tasks.language.masking import SPECIAL, MaskingTask


class PermutationLmTask(MaskingTask):
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForCausalLM"
    auto_mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    only_models: tuple[str, ...] = ("xlnet",)
    float32_weights = True  # XLNet's second stream multiplies its weights with positions in float32

    def __init__(self, config: PermutationLm):
        super().__init__(config)
        self._share, self._longest_span = config.plm_probability, config.max_span_length

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        """Beside what a masked language model gets `perm_mask`: int8 [rows, longest row, longest row], 1 where the
        first token must not see the second.
        """
        side, rows, labels = context.padding_side, [], []
        width = max(map(len, columns["input_ids"]))
        hidden: np.ndarray = np.zeros((len(place.rows), width, width), dtype=np.int8)
        for i, (ids, words, row) in enumerate(zip(columns["input_ids"], columns["words"], place.rows, strict=True)):
            special = words == SPECIAL
            chosen, order = self._draw(special, np.random.default_rng([place.seed, place.epoch, int(row)]))
            seen = np.where(chosen | special, order, -1)  # tokens that are not predicted come before all others
            own = slice(width - len(ids), width) if side == "left" else slice(len(ids))
            hidden[i, own, own] = (seen[:, None] <= seen[None, :]) & chosen
            rows.append(np.where(chosen, context.mask_token_id, ids))
            labels.append(np.where(chosen, ids, IGNORED))
        return {
            "input_ids": pad(rows, context.pad_token_id, side),
            "attention_mask": attention_mask(rows, side),
            "perm_mask": hidden,
            "labels": pad(labels, IGNORED, side),
        }

    def _draw(self, special: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are predicted: bool [tokens], and the place of each token in the order: int64 [tokens].

        Of every `span / plm_probability` tokens a span is predicted, somewhere among them. Both halves of a row have
        one order, and the second comes after the first, because XLNet's memory may hold the first.
        """
        count, begin = len(special), 0
        chosen: np.ndarray = np.zeros(count, dtype=bool)
        while begin < count:
            span = int(random.integers(1, self._longest_span + 1))
            around = int(span / self._share)
            first = begin + int(random.integers(around - span + 1))
            chosen[first : first + span] = True
            begin += around
        half = (count + 1) // 2
        order = random.permutation(half)
        return chosen & ~special, np.concatenate([order, order + half])[:count]

    # Model: the tokens that are predicted are all of the row, each in its place

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        """Give the model `target_mapping`, the identity, in the type that it computes in, wherever it gets `perm_mask`:
        cheaper made here than carried from where rows are collated.
        """
        model.transformer.register_forward_pre_hook(_map_targets, with_kwargs=True)

    def forward_kwargs(self) -> dict[str, Any]:
        return {"use_mems": False}  # of the last batch, whose rows are others

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        """As of a masked language model: no token sees a mask."""
        masks = inputs["input_ids"] == tokenizer.mask_token_id
        hidden = masks[:, None, :].expand(-1, masks.shape[1], -1).long()
        return super().outputs(model, {**inputs, "perm_mask": hidden, **self.forward_kwargs()}, tokenizer, generation)


def _map_targets(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """A hook before the forward of `XLNetModel`; see `apply_to_model`."""
    hidden = kwargs.get("perm_mask")
    if hidden is None or kwargs.get("target_mapping") is not None:
        return None
    import torch

    width = hidden.shape[-1]
    identity = torch.eye(width, dtype=module.dtype, device=hidden.device)
    return args, {**kwargs, "target_mapping": identity.expand(len(hidden), width, width)}
