"""Log-probabilities of completions: of the model that is trained, and of its reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from raytrain_nlp.tasks.base import IGNORED
from raytrain_nlp.tasks.objective import REFERENCE

_OWN = ("labels", "completion_mask", REFERENCE)
"""Inputs that the model does not take."""


def score_tokens(model: Any, inputs: dict[str, Any], which: slice, prompts: bool = False) -> Any:
    """The log-probability of each token of the completions, float32 [rows, sequences, tokens - 1]; 0 for others.

    Args:
        inputs: of the collator; arrays of tokens are [rows, sequences, tokens].
        which: sequences of each row.
        prompts: count the tokens of the prompts, too.
    """
    ids, mask = inputs["input_ids"][:, which], inputs["attention_mask"][:, which]
    rows, count, length = ids.shape
    others = {name: value for name, value in inputs.items() if name not in (*_OWN, "input_ids", "attention_mask")}
    logits = model(
        input_ids=ids.reshape(-1, length), attention_mask=mask.reshape(-1, length), **{**others, "use_cache": False}
    ).logits
    learned = mask if prompts else inputs["completion_mask"][:, which]
    targets = ids.masked_fill(learned == 0, IGNORED)[..., 1:].reshape(-1)
    losses = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), targets, ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(rows, count, length - 1)


def counted(inputs: dict[str, Any], which: slice, prompts: bool = False) -> Any:
    """Number of tokens that `score_tokens` scores: float32 [rows, sequences]."""
    mask = inputs["attention_mask" if prompts else "completion_mask"][:, which]
    return mask[..., 1:].sum(-1).float()


def score_completions(model: Any, inputs: dict[str, Any], which: slice) -> Any:
    """Log-probabilities of completions given their prompts: float32 [rows, sequences]."""
    return score_tokens(model, inputs, which).sum(-1)


def score_by_reference(plain: Any, inputs: dict[str, Any], which: slice) -> Any:
    """The same of the reference model, without gradient: computed before, or by the model without its adapter.

    Raises:
        ValueError: there is neither.
    """
    if REFERENCE in inputs:
        return inputs[REFERENCE].view(torch.float32)[:, which]
    if not hasattr(plain, "disable_adapter"):
        raise ValueError(
            "the log-probabilities of the reference model are known of the rows of data.train and data.validation "
            "only: others cannot be scored while a model is trained without an adapter. Use `raytrain-nlp evaluate`."
        )
    with quiet(plain), plain.disable_adapter():
        return score_completions(plain, inputs, which)


@contextlib.contextmanager
def quiet(model: Any) -> Iterator[None]:
    """While inside, `model` neither records gradients nor drops anything out."""
    trains = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(trains)
