"""The borders of documents that are packed into rows, for attention kernels that take no mask.

A row of `packing: best_fit` holds several documents, whose positions start again at each border. Where attention is
masked (eager, SDPA, flex attention), transformers makes the mask from these positions. Kernels of flash attention take
no mask but the lengths of documents, as cumulative lengths over the rows one behind the other; transformers finds them
in the positions where a batch has one row, and lets all documents of a row attend to each other where it has more. So
they are given here, for any number of rows; with them nothing is read back from the device in each layer either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain_nlp.compat.transformers import takes_lengths

LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Arguments of forward, as `transformers.modeling_flash_attention_utils.FlashAttentionKwargs` names them."""


def document_lengths(positions: torch.Tensor) -> dict[str, Any]:
    """The arguments `LENGTHS` for a batch whose documents begin where its positions do not go on.

    Args:
        positions: [rows, tokens]. On a GPU they are read back: give those that are still on the host.

    Returns:
        Cumulative lengths over all rows: int32 [documents + 1], and the longest document's tokens: int.
    """
    ends = document_ends(positions.detach().cpu().numpy())
    cumulative, longest = torch.from_numpy(ends).to(positions.device), int(np.diff(ends).max(initial=0))
    return dict(zip(LENGTHS, (cumulative, cumulative, longest, longest), strict=True))


def document_ends(positions: np.ndarray) -> np.ndarray:
    """Where documents begin, counted over all rows one behind the other, and where the last ends: int32
    [documents + 1]. `positions`: [rows, tokens].
    """
    begins = np.ones(positions.shape, dtype=bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    ends: np.ndarray = np.append(np.flatnonzero(begins), positions.size).astype(np.int32)
    return ends


def with_lengths(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a forward with the lengths of their documents, where positions alone say where these begin."""
    positions = inputs.get("position_ids")
    alone = inputs.get("attention_mask") is None and inputs.get("past_key_values") is None
    if not alone or getattr(positions, "ndim", 0) != 2 or any(inputs.get(name) is not None for name in LENGTHS):
        return inputs
    return {**inputs, **document_lengths(positions)}


def apply_lengths(model: torch.nn.Module) -> bool:
    """Let every forward of `model` have the lengths of its documents, also where a user's code leaves them out. Returns
    whether its attention takes them; they are best given with the batch, where they need not be read from a GPU.
    """
    takes = takes_lengths(model)
    if takes:
        model.register_forward_pre_hook(_complete, with_kwargs=True)
    return takes


def _complete(module: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, with_lengths(inputs)
