"""Do documents that are packed into one row stay apart in a model? Found out by trying it with a small model of the
same config, on CPU, in a fraction of a second: its logits of packed documents must be those of each document alone.
Can torch's own kernels compute what a model asks of flash attention? Found out likewise.

So what is said is what the family does with this config and this attention: whether it takes positions, gives them to
all of its masks, and has no other way between tokens (a recurrence, a convolution, a bias by distance).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from raytrain_nlp.compat.transformers import replaced_flash, takes_lengths
from raytrain_nlp.config.hardware import uses_torch_flash
from raytrain_nlp.modeling import flash_kernels
from raytrain_nlp.modeling.document_lengths import with_lengths
from raytrain_nlp.modeling.small_config import VOCABULARY, narrow_config, shallow_config

_ROWS = ((9, 5, 6), (11, 7))
"""Documents of each row, in tokens: more than a small window, and rows of unequal length."""
_MOST_ELEMENTS = 50_000_000
_TYPES = (torch.float32, torch.float64)
"""Experts are computed in the first only, flash attention of models without a linear layer in the second only."""
_TOLERANCE = 1e-4
"""Of the largest logit. Rounding makes about 1e-6, a document that sees another more than 1e-1."""


def keeps_documents_apart(config: Any, auto_class: Any, attention: str | None, remote: bool = False) -> bool | None:
    """Are the logits of packed documents those of each alone?

    Args:
        config: `transformers` config of the model.
        auto_class: the `transformers.AutoModelFor...` class.
        attention: `attn_implementation`; None: the model's own choice.
        remote: may code that came with the model run?

    Returns:
        None where it cannot be tried: no small model could be made of the config, or the attention is not known here.
    """
    for smaller, dtype in itertools.product((narrow_config, shallow_config), _TYPES):
        # a family may raise anything over sizes that it does not take
        with contextlib.suppress(Exception), _tried(attention):
            if (model := _build(smaller(config), auto_class, attention, remote)) is not None:
                return _largest_difference(model.to(dtype)) < _TOLERANCE
    return None


def torch_flash_lacks(config: Any, auto_class: Any, attention: str | None, remote: bool = False) -> str | None:
    """What the model asks of flash attention that torch's kernels do not have, in one line; None where it asks nothing,
    or where its kernels are not torch's.
    """
    if not uses_torch_flash(attention):
        return None
    reason = ""
    for smaller, dtype in itertools.product((narrow_config, shallow_config), _TYPES):
        try:
            with _tried(attention):
                if (model := _build(smaller(config), auto_class, attention, remote)) is not None:
                    inputs = torch.randint(3, VOCABULARY, (2, 8))
                    model.to(dtype).train()(input_ids=inputs, **_decoded(model, inputs))
                    return None
        except Exception as error:  # noqa: BLE001 - as above
            reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return reason


def _build(config: Any, auto_class: Any, attention: str | None, remote: bool) -> Any:
    """A model with random weights; None where they are too many to be made."""
    options = {"trust_remote_code": remote, **({"attn_implementation": attention} if attention else {})}
    with torch.device("meta"):
        size = sum(part.numel() for part in auto_class.from_config(config, **options).parameters())
    if size > _MOST_ELEMENTS:
        return None
    model = auto_class.from_config(config, **options).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # as they are made, they hardly change what they are added to
                weight.normal_(0, weight.shape[-1] ** -0.5)
    return model


def _largest_difference(model: Any) -> float:
    """Between logits of documents packed and alone, as a share of the largest logit."""
    random = torch.Generator().manual_seed(1)
    documents = [[torch.randint(3, VOCABULARY, (length,), generator=random) for length in row] for row in _ROWS]
    width = max(map(sum, _ROWS))
    ids, positions = torch.full((len(_ROWS), width), 2), torch.empty((len(_ROWS), width), dtype=torch.int64)
    for number, row in enumerate(documents):
        filled = [*row, ids[number, sum(map(len, row)) :]]  # padding is a document of its own
        ids[number] = torch.cat(filled)
        positions[number] = torch.cat([torch.arange(len(document)) for document in filled])
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad():
        packed = model(**(with_lengths(inputs) if takes_lengths(model) else inputs)).logits
        alone = [[model(input_ids=document[None], use_cache=False).logits[0] for document in row] for row in documents]
    worst = largest = 0.0
    for found, row in zip(packed, alone, strict=True):
        truth = torch.cat(row)
        worst = max(worst, float((found[: len(truth)] - truth).abs().max()))
        largest = max(largest, float(truth.abs().max()))
    return worst / largest


def _decoded(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}


@contextlib.contextmanager
def _tried(attention: str | None = None) -> Iterator[None]:
    """While inside, flash attention needs no GPU, flex attention is not compiled, which would take longer than all
    else, small products do not wait for threads, and random numbers are not the process's own.
    """
    uncompiled, threads = torch.compiler.set_stance("force_eager"), torch.get_num_threads()
    kernels: tuple[Any, Any] = flash_kernels.plain_attend, flash_kernels.plain_attend_documents
    if uses_torch_flash(attention):
        kernels = flash_kernels.plain_attend_as_torch, flash_kernels.plain_attend_documents_as_torch
    with torch.random.fork_rng(devices=[]), uncompiled, replaced_flash(*kernels):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
