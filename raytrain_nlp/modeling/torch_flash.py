"""The kernels of flash attention that are part of torch, called as those of the package flash-attn are: half precision
and a GPU from Ampere on, as there, but no dropout and no soft cap.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

_MULTIPLE = 8
"""Sizes of heads that the kernels take."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """As `flash_attn.flash_attn_func`: tensors [rows, tokens, heads, head size]."""
    queries, keys = (
        torch.arange(0, part.shape[0] * part.shape[1] + 1, part.shape[1], dtype=torch.int32, device=part.device)
        for part in (query, key)
    )
    flat = [part.flatten(0, 1) for part in (query, key, value)]
    options: dict[str, Any] = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size}
    lengths = queries, keys, query.shape[1], key.shape[1]
    return attend_documents(flat[0], flat[1], flat[2], *lengths, dropout_p, **options).view(query.shape)


def attend_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """As `flash_attn.flash_attn_varlen_func`: tensors [tokens of all documents, heads, head size]. Of keys and values
    there may be fewer heads. Raises `ValueError` for what torch's kernels do not have.
    """
    without_dropout(dropout_p)
    size = query.shape[-1]
    options: dict[str, Any] = {"scale": size**-0.5 if softmax_scale is None else softmax_scale}
    options["window_size"] = (window_size[0], 0 if causal else window_size[1])
    if "enable_gqa" in _parameters():
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    if left := -size % _MULTIPLE:
        query, key, value = (torch.nn.functional.pad(part, (0, left)) for part in (query, key, value))
    lengths = cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k)
    found: torch.Tensor = _kernel()(query, key, value, *lengths, **options)
    return found[..., :size]


def without_dropout(dropout_p: float) -> float:
    """0; raises `ValueError` for any other."""
    if dropout_p:
        raise ValueError(f"torch's kernels have no dropout ({dropout_p:g} is asked for)")
    return 0.0


def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@functools.cache
def _parameters() -> frozenset[str]:
    return frozenset(inspect.signature(_kernel()).parameters)
