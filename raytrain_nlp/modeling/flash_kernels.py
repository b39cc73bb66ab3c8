"""The kernels of flash attention, called as those of the package flash-attn are.

`torch_...`: those that are part of torch: half precision and a GPU from Ampere on, as there, but no dropout and no soft
cap. `plain_...`: what is computed, in plain torch: slow, on any device, and without limits of types and sizes; stands
in the place of a kernel where a model is tried before its GPUs are there.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

_MULTIPLE = 8
"""Sizes of heads that the kernels take."""


def torch_attend(
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
    return torch_attend_documents(flat[0], flat[1], flat[2], *lengths, dropout_p, **options).view(query.shape)


def torch_attend_documents(
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
    _without_dropout(dropout_p)
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


def _without_dropout(dropout_p: float) -> float:
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


def plain_attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attn.flash_attn_func`: tensors [rows, tokens, heads, head size]; of keys and values perhaps fewer
    heads. `s_aux`: a logit of each head that takes part in its softmax, as in GPT-OSS.
    """
    heads = query.shape[2]
    key, value = (part.repeat_interleave(heads // part.shape[2], dim=2) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(query.shape[1])[:, None] + key.shape[1] - query.shape[1] - torch.arange(key.shape[1])
    left, right = window_size[0], 0 if causal else window_size[1]
    hidden = (behind > left if left >= 0 else behind.new_zeros(behind.shape, dtype=torch.bool)) | (
        -behind > right if right >= 0 else behind.new_zeros(behind.shape, dtype=torch.bool)
    )
    scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    shares = scores.softmax(-1)[..., : key.shape[1]]
    return torch.einsum("bhqk,bkhd->bqhd", torch.dropout(shares, dropout_p, dropout_p > 0).to(value.dtype), value)


def plain_attend_documents(
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
    softcap: float = 0.0,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `flash_attn.flash_attn_varlen_func`: tensors [tokens of all documents, heads, head size]."""
    options: dict[str, Any] = {
        "dropout_p": dropout_p,
        "softmax_scale": softmax_scale,
        "causal": causal,
        "window_size": window_size,
        "softcap": softcap,
        "s_aux": s_aux,
    }
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    assert max(queries) <= max_seqlen_q and max(keys) <= max_seqlen_k and sum(queries) == len(query)
    parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    return torch.cat([plain_attend(*(part[None] for part in three), **options)[0] for three in parts])


def plain_attend_as_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`plain_attend` with what torch's kernels have, which raises `ValueError` for the rest."""
    return plain_attend(query, key, value, _without_dropout(dropout_p), softmax_scale, causal, window_size)


def plain_attend_documents_as_torch(
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
    """`plain_attend_documents` with what torch's kernels have, which raises `ValueError` for the rest."""
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    dropout = _without_dropout(dropout_p)
    return plain_attend_documents(query, key, value, *lengths, dropout, softmax_scale, causal, window_size)
