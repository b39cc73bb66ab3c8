"""Lets a model's own forward compute its loss without its logits.

While a `LazyHead` is active, the head returns `LazyLogits`, which remember the hidden states. What forwards of language
models do between head and loss, to upcast, to shift and to flatten, is done to the hidden states instead, and
`F.cross_entropy` of what comes out is computed in chunks (`modeling/chunked_loss.py`). Whatever else is done to them (a
soft cap, a scale, a bias, smoothing of labels, a look at a value) makes the real logits first and goes on with those.
So no list says which families do without logits: each that can does, and the others compute what they did before.

The head's module is called once, as ever: for logits, or for the loss, whose weight ZeRO-3 gathers before and whose
gradient it reduces after, by its hooks on that module.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from raytrain_nlp.modeling.chunked_loss import IGNORED, chunked_cross_entropy, chunked_token_losses

WORTH_IT = 1 << 22
"""Elements of the logits from which on chunks are used: smaller ones are computed at once, as by the model alone."""


class LazyHead:
    """The head of a model, and where it stands in it.

    Args:
        model: any module with `get_output_embeddings`.
        on_gpu: compute as on a GPU (default: where the hidden states are).
        worth_it: least number of elements of the logits that are computed in chunks.
    """

    def __init__(self, model: torch.nn.Module, on_gpu: bool | None = None, worth_it: int = WORTH_IT):
        self.head: torch.nn.Linear | None = find_plain_head(model)
        self.on_gpu, self.worth_it = on_gpu, worth_it
        self.most: int | None = None
        self.losses = 0
        """How many losses have been computed in chunks."""
        self._places = [
            (parent, name)
            for parent in model.modules()
            for name, child in parent.named_children()
            if child is self.head
        ]

    @contextlib.contextmanager
    def active(self, most: int | None = None) -> Iterator[None]:
        """While inside, losses of the model's forward are computed without logits. Does nothing for other heads.

        Args:
            most: the most tokens of a forward that may be predicted, where the host knows.
        """
        if self.head is None:
            yield
            return
        self.most, stand_in = most, _StandIn(self)
        for parent, name in self._places:
            setattr(parent, name, stand_in)
        try:
            yield
        finally:
            for parent, name in self._places:
                setattr(parent, name, self.head)

    def loss(self, logits: LazyLogits, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Cross-entropy of logits [tokens, vocabulary], through the head's module and its hooks. One call of the module
        in any case: ranks whose batches are of different sizes gather its weight equally often.
        """
        head, hidden = self.head, logits.hidden
        assert head is not None
        if hidden.shape[0] * head.out_features < self.worth_it:
            return F.cross_entropy(logits.whole(), targets, reduction=reduction)

        def forward(states: torch.Tensor) -> torch.Tensor:
            if reduction == "none":
                return chunked_token_losses(states, head.weight, head.bias, targets, on_gpu=self.on_gpu)
            return chunked_cross_entropy(
                states, head.weight, head.bias, targets, reduction=reduction, most=self.most, on_gpu=self.on_gpu
            )

        self.losses += 1
        with _forward_as(head, forward):
            found: torch.Tensor = head(hidden)
        return found


def find_plain_head(model: Any) -> torch.nn.Linear | None:
    """The module that computes a model's logits, where it is a linear layer as torch made it: without an adapter, not
    quantized, without a forward of somebody else's. None else.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    plain = type(head) is torch.nn.Linear and "forward" not in vars(head)
    return head if plain else None


@contextlib.contextmanager
def _forward_as(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


class _StandIn(torch.nn.Module):
    """Stands in the head's place. It has no parameters, and no hooks that would gather the head's for nothing."""

    def __init__(self, owner: LazyHead):
        super().__init__()
        object.__setattr__(self, "owner", owner)  # not as a submodule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.owner.head, name)

    def forward(self, hidden: torch.Tensor) -> Any:
        head = self.owner.head
        assert head is not None
        device = hidden.device.type
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not casts and hidden.dtype != head.weight.dtype:
            return head(hidden)  # which says so
        return LazyLogits(self.owner, hidden, torch.get_autocast_dtype(device) if casts else hidden.dtype)


class LazyLogits:
    """Logits [..., vocabulary] that are computed when they are needed: `head(hidden)`, as `dtype`."""

    def __init__(self, owner: LazyHead, hidden: torch.Tensor, dtype: torch.dtype):
        assert owner.head is not None
        self.owner, self.hidden, self._vocabulary = owner, hidden, owner.head.out_features
        self._whole: torch.Tensor | None = None
        self.dtype = dtype

    def whole(self) -> torch.Tensor:
        """The real logits, computed once: what is done to them in place is there when they are asked for again."""
        if self._whole is None:
            assert self.owner.head is not None
            self._whole = self.owner.head(self.hidden).to(self.dtype)
        return self._whole

    def _with(self, hidden: torch.Tensor, dtype: torch.dtype | None = None) -> LazyLogits:
        return LazyLogits(self.owner, hidden, dtype or self.dtype)

    # What is answered without them

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:-1], self._vocabulary))

    @property
    def ndim(self) -> int:
        return self.hidden.ndim

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def is_cuda(self) -> bool:
        return self.hidden.is_cuda

    @property
    def requires_grad(self) -> bool:
        return torch.is_grad_enabled()

    def dim(self) -> int:
        return self.hidden.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    # What is done to the hidden states instead

    def float(self) -> Any:
        return self.to(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if self._whole is None and len(args) == 1 and not kwargs:
            to = args[0]
            if isinstance(to, torch.dtype) and torch.promote_types(to, self.dtype) is to:  # an upcast loses nothing
                return self._with(self.hidden, to)
            if to == self.device:
                return self
        return self.whole().to(*args, **kwargs)

    def contiguous(self) -> Any:
        return self._with(self.hidden.contiguous()) if self._whole is None else self._whole.contiguous()

    def view(self, *shape: Any) -> Any:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        keeps = len(sizes) > 1 and all(type(size) is int for size in sizes) and self._keeps_rows(sizes)
        if self._whole is None and keeps:
            return self._with(self.hidden.reshape(*sizes[:-1], self.hidden.shape[-1]))
        return self.whole().reshape(*sizes) if keeps else self.whole().view(*shape)

    reshape = view

    def _keeps_rows(self, sizes: Any) -> bool:
        """Does a shape leave the last dimension as it is?"""
        rows = 1
        for size in sizes[:-1]:
            rows *= size
        return sizes[-1] == self._vocabulary or (sizes[-1] == -1 and rows == self.hidden[..., 0].numel())

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        simple = all(part is Ellipsis or type(part) in (slice, int) for part in parts)
        named = sum(part is not Ellipsis for part in parts)
        reaches_last = parts[-1:] != (Ellipsis,) and (Ellipsis in parts or named == self.ndim)
        if self._whole is None and simple and (not reaches_last or parts[-1] == slice(None)):
            return self._with(self.hidden[index])
        return self.whole()[index]

    # Everything else

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"'LazyLogits' object has no attribute '{name}'")
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.cross_entropy and (found := _lazy_loss(*args, **kwargs)) is not None:
            return found
        return function(*_whole(args), **_whole(kwargs))


def _lazy_loss(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """`F.cross_entropy` in chunks; None where its arguments ask for more than losses of tokens, their mean or sum."""
    asked = _CROSS_ENTROPY.bind(*args, **kwargs)
    asked.apply_defaults()
    values = asked.arguments
    logits, targets = values.pop("input"), values.pop("target")
    reduction = values.pop("reduction")
    if not isinstance(logits, LazyLogits) or logits._whole is not None or values != _DEFAULTS:
        return None
    tokens = isinstance(targets, torch.Tensor) and targets.dtype is torch.int64 and targets.dim() == 1
    if reduction not in ("mean", "sum", "none") or not tokens or logits.ndim != 2:
        return None
    return logits.owner.loss(logits, targets, reduction)


_CROSS_ENTROPY = inspect.signature(F.cross_entropy)
_DEFAULTS = {
    "weight": None,
    "size_average": None,
    "ignore_index": IGNORED,
    "reduce": None,
    "label_smoothing": 0.0,
}


def _whole(value: Any) -> Any:
    """The same value with real logits in it."""
    if isinstance(value, LazyLogits):
        return value.whole()
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_whole(item) for item in value)
    return value


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: LazyLogits, *args: Any) -> Any:
        return getattr(self.whole(), name)(*_whole(args))

    operate.__name__ = name
    return operate


for _name in (
    "add radd iadd sub rsub isub mul rmul imul truediv rtruediv itruediv floordiv mod pow rpow matmul rmatmul neg abs "
    "eq ne lt le gt ge and or xor invert len iter setitem bool int float contains"
).split():
    setattr(LazyLogits, f"__{_name}__", _operator(f"__{_name}__"))
LazyLogits.__hash__ = object.__hash__  # type: ignore[method-assign]
