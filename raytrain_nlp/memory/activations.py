"""What a step keeps in memory besides the model's states, found by running it on torch's meta device: shapes, and no
memory.

Every operation of forward and backward is seen with the sizes of its results, and when nothing refers to a result any
more. So it holds for any architecture, for the loss over a vocabulary, and for recomputed activations (the formulas of
Korthikanti et al. 2022, section 4, hold for one kind of layer). Two kinds of operations differ between the meta device
and a real one and are replaced: attention that never makes the matrix of scores, and dropout, which on a GPU keeps a
byte an element.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from raytrain_nlp.compat.torch import dispatch_mode, reads_value, replaced_functions, storage_key, tensors_in

LARGE = 32 << 20
"""Tensors from this size on are given back to the system when they end; smaller ones stay with glibc's heap (its
`DEFAULT_MMAP_THRESHOLD_MAX`).
"""


@dataclass(frozen=True)
class StepTrace:
    """Live bytes in the course of a step, without weights and without gradients of weights."""

    points: tuple[tuple[int, int, int], ...]
    """In the order of time: elements of weights whose gradient is there; most bytes live while so many are; of them in
    large tensors.
    """
    small_peak: int
    """Most bytes live in tensors of less than `LARGE` bytes."""

    @property
    def peak(self) -> int:
        return max((live for _, live, _ in self.points), default=0)

    def towards(self, other: StepTrace, share: float) -> StepTrace:
        """That of a batch between two: a part of what is live grows with the rows, another does not. Never less than
        the true one.
        """
        pairs = zip(self.points, other.points, strict=True)
        points = tuple(
            (done, _between(live, more, share), _between(large, larger, share))
            for (done, live, large), (_, more, larger) in pairs
        )
        return StepTrace(points, _between(self.small_peak, other.small_peak, share))

    def worst(self, gradient_bytes: Callable[[int], float], large_only: bool = False) -> tuple[float, float]:
        """Gradients' bytes and live bytes at the moment when their sum is largest; `gradient_bytes` of the elements
        that are there.
        """
        return max(
            ((gradient_bytes(done), float(large if large_only else live)) for done, live, large in self.points), key=sum
        )


def trace_step(model: Any, batch: dict[str, Any], *, padded: bool, use_gpu: bool, train: bool = True) -> StepTrace:
    """Run one forward (and backward) of a model on the meta device. `batch`: arrays, and other arguments of forward, by
    name.

    Gradients of weights are counted as done and let go: where they are kept is the optimizer's matter.
    """
    inputs = {name: _to_meta(value) if hasattr(value, "dtype") else value for name, value in batch.items()}
    live = _Live(padded, [*model.parameters(), *model.buffers()])
    hooks = [
        parameter.register_post_accumulate_grad_hook(live.gradient_done)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    model.train(train)
    try:
        with _real_kernels(use_gpu), live:
            if train:
                model(**inputs).loss.backward()
            else:
                with torch.no_grad():
                    model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return StepTrace(tuple(live.points), live.small_peak)


def _between(first: float, second: float, share: float) -> int:
    return round(first + (second - first) * share)


def _to_meta(array: Any) -> torch.Tensor:
    tensor = torch.as_tensor(array)
    return (tensor if tensor.is_floating_point() else tensor.long()).to("meta")  # as the feed hands them out


class _Live(dispatch_mode()):  # type: ignore[misc]  # torch is loaded when the class is asked for
    """Counts the bytes of tensors that are alive; those of the model itself are not counted."""

    def __init__(self, padded: bool, own: list[torch.Tensor]):
        super().__init__()
        self._padded, self._now, self._large, self._done = padded, 0, 0, 0
        self._known = {storage_key(tensor.untyped_storage()) for tensor in own}
        self.points: list[tuple[int, int, int]] = [(0, 0, 0)]
        self.small_peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_value(function):  # a model asks for a value: whether a mask masks nothing
            return not self._padded if args[0].dtype is torch.bool else 1
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if (key := storage_key(storage)) not in self._known:
                self._known.add(key)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._free, key, storage.nbytes())
        _, most, most_large = self.points[-1]
        self.points[-1] = (self._done, max(most, self._now), max(most_large, self._large))
        self.small_peak = max(self.small_peak, self._now - self._large)
        return result

    def _count(self, size: int) -> None:
        self._now += size
        self._large += size if abs(size) >= LARGE else 0

    def _free(self, key: int, size: int) -> None:
        self._count(-size)
        self._known.discard(key)

    def gradient_done(self, parameter: torch.Tensor) -> None:
        """A weight's gradient is complete; from here on it is not live in our sense."""
        parameter.grad = None
        self._done += parameter.numel()
        self.points.append((self._done, self._now, self._large))


@contextlib.contextmanager
def _real_kernels(use_gpu: bool) -> Iterator[None]:
    """While inside, functions do what they do on a CPU or a GPU, not what they do on the meta device."""
    attention = F.scaled_dot_product_attention

    def fused(*args: Any, **kwargs: Any) -> torch.Tensor:
        dropped = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return (
            attention(*args, **kwargs) if dropped and not use_gpu else _attention(*args, **kwargs)
        )  # a CPU with dropout makes all scores

    with replaced_functions(scaled_dot_product_attention=fused, **({"dropout": _dropout} if use_gpu else {})):
        yield


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    return _FusedAttention.apply(query, key, value, attn_mask)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


class _FusedAttention(torch.autograd.Function):
    """Sizes of flash attention (Dao et al. 2022): kept are queries, keys, values, the result, and a logarithm a row and
    head.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(
            query,
            key,
            value,
            result,
            query.new_empty(query.shape[:-1], dtype=torch.float32),
            *([] if mask is None else [mask]),
        )
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
