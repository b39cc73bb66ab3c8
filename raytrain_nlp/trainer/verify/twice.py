"""The gradients of a micro-batch, computed twice: by its own rank, and again by the next one (by the same, where there
is no other).

    own rank: hooks on the weights note the sum of the bits of each gradient, before it is reduced over the ranks
    next rank: gets inputs, random state and the factor of the loss; computes the gradients and compares their sums

The second pass leaves nothing behind: no gradient is accumulated, no hook of DDP or DeepSpeed runs, the random state
and the model's buffers are as before. What differs is computed once more by both, and tells who was wrong.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from raytrain_nlp.distributed.bit_sums import bit_sum
from raytrain_nlp.distributed.collectives import from_previous, gather_objects
from raytrain_nlp.distributed.random_state import random_state, set_random_state

Compute = Callable[["Pass"], torch.Tensor]
"""The loss of a pass, shape [], as the trainer computes it, without its backward pass."""


@dataclass(frozen=True)
class Pass:
    """What gradients are computed from."""

    inputs: dict[str, Any]
    step: Any
    """The trainer's `Step`; without the tensors of its micro-batch."""
    count: Any
    """`num_items_in_batch`."""
    random: dict[str, Any]
    drawn: Any
    """The position of `modeling.rank_symmetry.SharedDraws`."""
    factor: torch.Tensor | None = None
    """Gradient of what the backward pass started from with respect to the loss, shape []: its share of the global
    batch, and the scale of half precision."""
    sums: tuple[int, ...] = ()
    """Of the bits of each weight's gradient; 0 of a weight without."""


class Twice:
    """Gradients of one model, computed twice.

    Args:
        model: without the wrapper that reduces gradients.
        draws: has `position` and `go_to`, if the model skips layers by shared draws.
    """

    def __init__(self, model: torch.nn.Module, draws: Any = None):
        self._model, self._draws = model, draws
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._sums: list[torch.Tensor | None] = []
        self._factor: torch.Tensor | None = None
        self._hooks: list[Any] = []
        self.begun: Pass | None = None
        """The pass of this rank that goes on, or whose gradients have not been compared yet."""

    # The pass of the run

    def begin(self, inputs: dict[str, Any], step: Any, count: Any) -> None:
        """The forward of a micro-batch is about to begin; its gradients are to be noted."""
        self.begun = Pass(dict(inputs), step, count, random_state(), self._draws.position if self._draws else None)
        self._sums, self._hooks = self._noted()

    def saw(self, loss: torch.Tensor) -> None:
        """The forward has returned its loss."""
        if self.begun is not None and not self.begun.sums and loss.requires_grad:
            self._hooks.append(loss.register_hook(self._keep_factor))

    def _keep_factor(self, gradient: torch.Tensor) -> None:
        self._factor = gradient.detach().clone()

    def drop(self) -> None:
        """Forget the pass, if one goes on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._sums, self._factor, self.begun = [], [], None, None

    def _noted(self, keep: bool = True) -> tuple[list[torch.Tensor | None], list[Any]]:
        """A list that the sums of gradients are written to, and the hooks that do so. Without `keep` nothing but its
        shape is left of a gradient, so that they need no memory together.
        """
        sums: list[torch.Tensor | None] = [None] * len(self._weights)

        def note(place: int, gradient: torch.Tensor) -> torch.Tensor | None:
            sums[place] = bit_sum(gradient)
            return None if keep else gradient.new_zeros(()).expand(gradient.shape)

        return sums, [
            weight.register_hook(functools.partial(note, place)) for place, weight in enumerate(self._weights.values())
        ]

    # The second pass

    def compare(self, compute: Compute) -> list[Difference]:
        """Compute again, and compare. Every rank must call it after its backward pass; what differs is returned on all
        ranks.
        """
        assert self.begun is not None, "begin comes first"
        own = replace(self.begun, sums=_read(self._sums), factor=self._factor)
        self.drop()
        if own.factor is None:  # nothing was learned of it
            own = replace(own, factor=torch.zeros(()))
        theirs = from_previous(_portable(own))
        again = self._sums_of(theirs, compute)
        if not any(gather_objects(again != theirs.sums)):
            return []
        # who was wrong? Both compute once more
        once_more, own_again = self._sums_of(theirs, compute), self._sums_of(own, compute)
        said = (theirs.sums, from_previous(own_again), again, once_more)
        names = [
            name for name, *sums in zip(self._weights, *said, strict=True) if any(value != sums[0] for value in sums)
        ]
        found = gather_objects((who_was_wrong(*said), names))
        return [
            Difference((rank - 1) % len(found), rank, kind, names)
            for rank, (kind, names) in enumerate(found)
            if kind is not None
        ]

    def _sums_of(self, given: Pass, compute: Compute) -> tuple[int, ...]:
        with self._leaving_nothing():
            set_random_state(given.random)
            if self._draws:
                self._draws.go_to(given.drawn)
            loss = compute(given)
            sums, hooks = self._noted(keep=False)
            try:
                if loss.requires_grad and given.factor is not None:
                    factor = given.factor.to(loss.device, loss.dtype)
                    torch.autograd.grad(loss, list(self._weights.values()), factor, allow_unused=True)
            finally:
                for hook in hooks:
                    hook.remove()
            return _read(sums)

    @contextlib.contextmanager
    def _leaving_nothing(self) -> Iterator[None]:
        state, drawn = random_state(), self._draws.position if self._draws else None
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        try:
            with torch.enable_grad():
                yield
        finally:
            set_random_state(state)
            if self._draws:
                self._draws.go_to(drawn)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@dataclass(frozen=True)
class Difference:
    """Gradients that two ranks have computed differently from the same rows, weights and random numbers."""

    rank: int
    """Whose micro-batch it was."""
    checker: int
    """The rank that computed them again; the same where there is no other."""
    kind: str
    """`run`: those of the run were wrong. `check`: those of the check were, which hurts nobody. `apart`: each of the
    two ranks computes the same again, but not what the other does. `unsteady`: none computes the same again."""
    names: list[str]
    """Of the weights."""


def who_was_wrong(run: Any, run_again: Any, check: Any, check_again: Any) -> str | None:
    """The kind of `Difference` by four sums: those of the run, which its rank computed once more, and those of the
    check, likewise. None where the run and the first check agree.
    """
    if run == check:
        return None
    if check == check_again == run_again:
        return "run"
    if run == run_again == check_again:
        return "check"
    return "apart" if run == run_again and check == check_again else "unsteady"


def _read(sums: list[torch.Tensor | None]) -> tuple[int, ...]:
    found = [value for value in sums if value is not None]
    values = iter(torch.stack(found).tolist() if found else [])
    return tuple(0 if value is None else next(values) for value in sums)


def _portable(given: Pass) -> Pass:
    """As another rank can take it: on the CPU, without what only this process has."""
    factor = None if given.factor is None else given.factor.cpu()
    inputs = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in given.inputs.items()}
    count = given.count.cpu() if isinstance(given.count, torch.Tensor) else given.count
    return replace(given, inputs=inputs, factor=factor, count=count)
