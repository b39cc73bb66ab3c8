"""Cross-entropy of a language model's head without its logits: the loss, and the gradients of hidden states and head,
chunk by chunk over tokens.

Neither `[tokens, vocabulary]` nor its gradient exists: a chunk's logits live in a buffer that the next chunk reuses,
and what the backward pass needs of them (the gradients with respect to hidden states, weight and bias) is made while
they are there. Nothing is read back from the device: no shape depends on a value, the number of predicted tokens is an
argument, and the backward pass multiplies by the incoming gradient on the device.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

IGNORED = -100
_ALIGNED = 16
"""Bytes. Rows of a matrix that are no multiple of this keep cuBLAS from the kernels of tensor cores."""
_PADDED_TO = 64
_GPU_LOGITS, _GPU_TOKENS = 1 << 27, 1024
_CPU_LOGITS, _CPU_TOKENS = 1 << 23, 64
"""Elements of a chunk's logits, and the fewest tokens of a chunk: each chunk adds once to the gradient of the whole
head, so that few tokens a chunk cost more than they save.
"""
_SELECTED = 0.75
"""Ignored tokens are left out where the others are fewer than this share: selecting copies hidden states."""


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    reduction: str = "mean",
    most: int | None = None,
    on_gpu: bool | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """What `F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)` returns, with the same gradients.
    Nothing is read back from the device.

    Args:
        hidden: [tokens, hidden size].
        weight: the head's weight, [vocabulary, hidden size]. Under autocast its type may be another than the one that
            products are computed in.
        bias: [vocabulary] or None.
        targets: int64 [tokens]; tokens whose target is -100 are not predicted.
        reduction: `mean` over predicted tokens, or `sum`.
        most: the most tokens that may be predicted, where the host knows; with fewer than there are, the loss is NaN.
        on_gpu: compute as on a GPU; default: where `hidden` is.
        chunk: tokens of a chunk; default: by the size of the vocabulary.

    Returns:
        float32 of shape [] (float64 for hidden states of that type).
    """
    on_gpu = hidden.is_cuda if on_gpu is None else on_gpu
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if _autocasts(device) else hidden.dtype
    valid = targets.ne(IGNORED)
    count = valid.sum()
    kept = None
    if most is not None and most <= _SELECTED * targets.numel():
        kept = torch.argsort(valid, descending=True, stable=True)[: max(most, 1)]  # the predicted ones, in their order
        targets = targets.index_select(0, kept)
    size = chunk or _chunk_tokens(targets.numel(), weight.shape[0], on_gpu)
    total = _ChunkedSum.apply(hidden, weight, bias, targets, kept, size, dtype, on_gpu, torch.is_grad_enabled())
    if kept is not None:
        total = torch.where(count > kept.numel(), torch.nan, total)
    return total if reduction == "sum" else total / count


def chunked_token_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    on_gpu: bool | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """The losses of tokens one by one, [tokens], with arguments as `chunked_cross_entropy`; 0 for ignored ones. What
    the backward pass needs of a chunk's logits is computed again there, as the factor of each token is known only then.
    """
    size = chunk or _chunk_tokens(targets.numel(), weight.shape[0], hidden.is_cuda if on_gpu is None else on_gpu)

    def losses(states: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        logits = F.linear(states, weight, bias)
        return F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), part, ignore_index=IGNORED, reduction="none"
        )

    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([losses(*part) for part in parts])
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _chunk_tokens(tokens: int, vocabulary: int, on_gpu: bool) -> int:
    """Tokens of a chunk, so that all chunks are about equally large."""
    logits, fewest = (_GPU_LOGITS, _GPU_TOKENS) if on_gpu else (_CPU_LOGITS, _CPU_TOKENS)
    most = max(logits // vocabulary, fewest)
    each = -(-tokens // -(-tokens // most)) if tokens else 1
    return -(-each // _PADDED_TO) * _PADDED_TO


class _ChunkedSum(torch.autograd.Function):
    """The sum of the losses of tokens; its gradients are made in the forward pass, for an incoming gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        kept: torch.Tensor | None,
        size: int,
        dtype: torch.dtype,
        on_gpu: bool,
        grads: bool,
    ) -> torch.Tensor:
        wanted = [grads and needed for needed in ctx.needs_input_grad[:3]]
        states = (hidden if kept is None else hidden.index_select(0, kept)).to(dtype)
        with (
            torch.autocast(hidden.device.type, enabled=False)
            if _autocasts(hidden.device.type)
            else contextlib.nullcontext()
        ):
            run = _Chunks(states, weight, bias, dtype, on_gpu, size, wanted)
            for start in range(0, targets.numel(), size):
                run.add(start, targets[start : start + size])
        ctx.dtypes = [tensor.dtype if tensor is not None else None for tensor in (hidden, weight, bias)]
        ctx.made = run.gradients()
        if wanted[0] and kept is not None:
            ctx.made[0] = hidden.new_zeros(hidden.shape, dtype=dtype).index_copy_(0, kept, ctx.made[0])
        return run.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of the chunked loss are used up: its backward pass can run only once.")
        # of more than zero dimensions, else its fp32 would be rounded to the type of what it multiplies
        factor = gradient.reshape(1, 1)
        found = [
            None if part is None else _scaled(part, factor, dtype) for part, dtype in zip(made, ctx.dtypes, strict=True)
        ]
        return (*found, *[None] * 6)


def _scaled(part: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    factor = factor if part.dim() == 2 else factor.reshape(1)
    return torch.mul(part, factor, out=part).to(dtype) if part.dtype == dtype else torch.mul(part, factor).to(dtype)


class _Chunks:
    """The buffers of one loss, and what the chunks so far have added to its sum and gradients."""

    def __init__(
        self,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        on_gpu: bool,
        size: int,
        wanted: list[bool],
    ):
        self._states, self._on_gpu, self._wanted = states, on_gpu, wanted
        self._vocabulary, self._stored = weight.shape[0], weight.dtype
        self._weight = _aligned(weight, dtype, on_gpu)
        self._bias = None if bias is None else _aligned(bias, dtype, on_gpu)
        rows, self._wide = min(size, len(states)), torch.promote_types(dtype, torch.float32)
        self._logits = states.new_empty((rows, len(self._weight)))
        self._logarithms = states.new_empty((rows, len(self._weight)), dtype=self._wide)
        self.total = states.new_zeros((), dtype=self._wide)
        self._of_states = torch.empty_like(states) if wanted[0] else None
        self._of_weight = torch.zeros_like(self._weight, dtype=self._wide) if wanted[1] else None
        self._of_bias = states.new_zeros(len(self._weight), dtype=self._wide) if wanted[2] else None

    def add(self, start: int, targets: torch.Tensor) -> None:
        """One chunk, the tokens from `start` on."""
        rows = len(targets)
        states, logits, logarithms = self._states[start : start + rows], self._logits[:rows], self._logarithms[:rows]
        if self._bias is None:
            torch.mm(states, self._weight.t(), out=logits)
        else:
            torch.addmm(self._bias, states, self._weight.t(), out=logits)
        if len(self._weight) > self._vocabulary:
            logits[:, self._vocabulary :].fill_(-torch.inf)
        torch.log_softmax(logits, -1, self._wide, out=logarithms)
        ignored = targets.eq(IGNORED).unsqueeze(1)
        index = targets.unsqueeze(1).masked_fill(ignored, 0)
        chosen = logarithms.gather(1, index)
        self.total -= chosen.masked_fill(ignored, 0).sum()
        if any(self._wanted):
            torch.exp(logarithms, out=logits)  # the gradient: probabilities, of the target less 1
            logits.scatter_(1, index, torch.expm1(chosen).to(logits.dtype))
            self._add_gradients(start, states, logits, ignored)

    def _add_gradients(self, start: int, states: torch.Tensor, of_logits: torch.Tensor, ignored: torch.Tensor) -> None:
        if self._of_states is not None:
            mine = self._of_states[start : start + len(states)]
            torch.mm(of_logits, self._weight, out=mine)
            mine.masked_fill_(ignored, 0)
        if self._of_weight is not None:
            _add_product(self._of_weight, of_logits.t(), states.masked_fill(ignored, 0), self._on_gpu)
        if self._of_bias is not None:
            predicted = (~ignored).to(of_logits.dtype)
            self._of_bias += torch.mm(of_logits.t(), predicted).squeeze(1)

    def gradients(self) -> list[torch.Tensor | None]:
        """With respect to states, weight and bias. That of fp16 weights stays fp32, for its range, until it is
        multiplied.
        """
        weight, bias = self._of_weight, self._of_bias
        if weight is not None:
            weight = weight[: self._vocabulary]
            weight = weight.to(self._stored) if self._stored is torch.bfloat16 else weight
        return [self._of_states, weight, None if bias is None else bias[: self._vocabulary]]


def _aligned(part: torch.Tensor, dtype: torch.dtype, on_gpu: bool) -> torch.Tensor:
    """The head's weight or bias in `dtype`; on a GPU with rows of zeros up to a multiple of 64, where it needs them."""
    rows = len(part)
    if not on_gpu or rows * dtype.itemsize % _ALIGNED == 0:
        return part.detach().to(dtype)
    padded = part.new_empty((-(-rows // _PADDED_TO) * _PADDED_TO, *part.shape[1:]), dtype=dtype)
    padded[:rows].copy_(part.detach())
    padded[rows:].zero_()
    return padded


def _add_product(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor, on_gpu: bool) -> None:
    """`total += first @ second`, summed in the type of `total`."""
    if total.dtype == first.dtype:
        torch.addmm(total, first, second, out=total)
    elif on_gpu and _adds_wide(total.device.type):
        if not total.is_meta:  # where there is no such kernel, and the one of a GPU takes no memory
            torch.addmm(total, first, second, out_dtype=total.dtype, out=total)
    elif first.dtype is torch.float16:  # whose range a sum over tokens may leave
        total.addmm_(first.to(total.dtype), second.to(total.dtype))
    else:
        total += torch.mm(first, second)


@functools.cache
def _adds_wide(device: str) -> bool:
    """Can products of half precision be added to fp32 without a tensor in between?"""
    if device == "meta":
        return True
    try:
        part = torch.zeros((16, 16), device=device, dtype=torch.bfloat16)
        total = part.float()
        torch.addmm(total, part.t(), part, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def plain_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The same by way of all logits, as language models of transformers compute it: the mean, for comparison."""
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, ignore_index=IGNORED)
