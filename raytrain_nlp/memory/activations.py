"""The memory of a step's activations and temporary tensors, found by running the step on torch's meta device, where
tensors have shapes but no memory.

A dispatch mode records the size of each operation's results, and when a result is freed. So it works for any
architecture, for the loss over a vocabulary, and for gradient checkpointing (the formulas of Korthikanti et al. 2022,
section 4, hold for one kind of layer). Two operations that differ on the meta device are replaced: fused attention,
which never stores the matrix of scores, and dropout, which on a GPU keeps a mask of one byte an element.
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
from raytrain_nlp.memory.autocast import autocast_on_meta, half_of
from raytrain_nlp.modeling.lazy_logits import LazyHead
from raytrain_nlp.tasks.base import IGNORED
from raytrain_nlp.tasks.objective import REFERENCE, Objective

LARGE = 32 << 20
"""Bytes. When glibc frees a tensor, it returns it to the system from this size on, else to its own heap
(`DEFAULT_MMAP_THRESHOLD_MAX` in malloc.c).
"""


@dataclass(frozen=True)
class StepTrace:
    """The bytes that are live in the course of a step, without weights and their gradients."""

    points: tuple[tuple[int, int, int], ...]
    """In the order of time: how many elements of weights have their gradient; the most bytes live while that many do;
    and the most bytes live in tensors of at least `LARGE` bytes.
    """
    small_peak: int
    """Most bytes live in tensors of less than `LARGE` bytes."""

    @property
    def peak(self) -> int:
        return max((live for _, live, _ in self.points), default=0)

    def towards(self, other: StepTrace, share: float) -> StepTrace:
        """Interpolate the trace of a batch whose number of rows lies between those of two traced batches: at `share` of
        the way from this one to `other`. It is an upper bound where memory is a convex function of the rows.
        """
        pairs = zip(self.points, other.points, strict=True)
        points = tuple(
            (done, _between(live, more, share), _between(large, larger, share))
            for (done, live, large), (_, more, larger) in pairs
        )
        return StepTrace(points, _between(self.small_peak, other.small_peak, share))

    def worst(self, gradient_bytes: Callable[[int], float], large_only: bool = False) -> tuple[float, float]:
        """The bytes of gradients and the live bytes at the moment when their sum is largest.

        Args:
            gradient_bytes: from the number of elements that have their gradient to bytes.
            large_only: count live tensors of at least `LARGE` bytes only.
        """
        return max(
            ((gradient_bytes(done), float(large if large_only else live)) for done, live, large in self.points), key=sum
        )


def trace_step(
    model: Any,
    batch: dict[str, Any],
    *,
    padded: bool,
    use_gpu: bool,
    train: bool = True,
    chunked_loss: bool = False,
    autocast: bool = False,
    objective: Objective | None = None,
) -> StepTrace:
    """Run one forward (and, with `train`, backward) of a model on the meta device.

    A weight's gradient is counted in the trace's elements and dropped at once; what it takes is planned in
    `memory/zero.py`.

    Args:
        model: with all parameters on the meta device.
        batch: the arguments of forward by name; arrays are moved to the meta device, other values passed as they are.
        padded: whether the batch's attention mask masks anything; some models ask.
        use_gpu: whether to count as the kernels of a GPU would; else those of a CPU.
        chunked_loss: whether the loss of a language model is computed without its logits, where the model can.
        autocast: whether products are computed in 16 bits from the weights of fp32 that the model has.
        objective: the task's loss, where the model does not compute it.
    """
    loss = LazyHead(model, on_gpu=use_gpu).active(_most_predicted(batch)) if chunked_loss else contextlib.nullcontext()
    inputs = {name: _to_meta(value) if hasattr(value, "dtype") else value for name, value in batch.items()}
    live = _Live(padded, [*model.parameters(), *model.buffers()])
    hooks = [
        parameter.register_post_accumulate_grad_hook(live.gradient_done)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    model.train(train)
    casts = autocast_on_meta(live.uncounted) if autocast else contextlib.nullcontext()
    try:
        with casts, _real_kernels(use_gpu, half_of if autocast else None), live, loss:
            with torch.set_grad_enabled(train):
                loss_of = model(**inputs).loss if objective is None else _own_loss(objective, model, inputs, not train)
            if train:
                loss_of.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return StepTrace(tuple(live.points), live.small_peak)


def _own_loss(objective: Objective, model: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
    """The loss of one micro-batch that is a whole global batch."""
    if objective.reads_reference and not hasattr(model, "disable_adapter"):
        shape = inputs["input_ids"].shape[:2]
        inputs = {**inputs, REFERENCE: torch.zeros(shape, dtype=torch.int32, device="meta")}
    values = objective.values(model, model, inputs, evaluates)
    parts = [(inputs, len(inputs["input_ids"]))]
    sums = None
    if objective.reads_batch:
        sums = objective.sums_of(values) if evaluates else objective.batch_sums(model, parts)
    return objective.loss(values, sums)


def _most_predicted(batch: dict[str, Any]) -> int | None:
    """As the trainer knows it of a micro-batch: predicted tokens, and a token more of each row."""
    labels = batch.get("labels")
    return None if labels is None else int((labels != IGNORED).sum()) + len(labels)


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
        self._counts = True

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """While inside, no tensor that is made counts."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_value(function):  # a model asks for a value: whether a mask masks nothing
            return not self._padded if args[0].dtype is torch.bool else 1
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if (key := storage_key(storage)) not in self._known:
                size = storage.nbytes() if self._counts else 0
                self._known.add(key)
                self._count(size)
                weakref.finalize(storage, self._free, key, size)
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
def _real_kernels(use_gpu: bool, cast: Callable[[Any], Any] | None) -> Iterator[None]:
    """While inside, functions do what they do on a CPU or a GPU, not what they do on the meta device. `cast`: what
    autocast does to the arguments of attention.
    """
    attention = F.scaled_dot_product_attention

    def fused(*args: Any, **kwargs: Any) -> torch.Tensor:
        if cast is not None:
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        dropped = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return (
            attention(*args, **kwargs) if dropped and not use_gpu else _attention(*args, **kwargs)
        )  # a CPU with dropout makes all scores

    with replaced_functions(F, scaled_dot_product_attention=fused, **({"dropout": _dropout} if use_gpu else {})):
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
    """Stands for flash attention (Dao et al. 2022) in the trace: it saves queries, keys, values and the result for the
    backward pass, and one fp32 logarithm for each query and head.
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
