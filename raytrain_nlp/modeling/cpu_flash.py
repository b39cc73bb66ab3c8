"""What the kernels of flash attention compute, in plain torch on any device: slow, and without their limits of types
and sizes. Stands in their place where a model is tried before its GPUs are there.
"""

from __future__ import annotations

from typing import Any

import torch

from raytrain_nlp.modeling import torch_flash


def attend(
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
    return torch.cat([attend(*(part[None] for part in three), **options)[0] for three in parts])


def attend_as_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`attend` with what `torch_flash` has, which raises `ValueError` for the rest."""
    return attend(query, key, value, torch_flash.without_dropout(dropout_p), softmax_scale, causal, window_size)


def attend_documents_as_torch(
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
    """`attend_documents` with what `torch_flash` has, which raises `ValueError` for the rest."""
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    dropout = torch_flash.without_dropout(dropout_p)
    return attend_documents(query, key, value, *lengths, dropout, softmax_scale, causal, window_size)
