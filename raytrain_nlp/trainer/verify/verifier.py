"""What `training.verify_every` does in a training.

    every step       sums of the bits of weights and moments: taken after the update, compared before the next one
    verified steps   before the first forward: what has been found so far is read, and ranks with the same weights and
                     moments compare their sums; after each backward: the gradients are computed again
    checkpoints      read and compared, too, before the commit: a checkpoint holds nothing that has been found

An error is raised on all ranks at the same place (`SilentError`). The group of workers then starts again from the
newest checkpoint, as after any failure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain_nlp.distributed.bit_sums import minority
from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.timeline import TIMELINE, VERIFICATION
from raytrain_nlp.errors import SilentError
from raytrain_nlp.trainer.verify.resting import Resting, frozen_weights, learned_state, learned_weights
from raytrain_nlp.trainer.verify.twice import Difference, Pass, Twice

_NAMED = 3
"""At most so many tensors are named in a message."""


@dataclass
class Verifier:
    """The checks of one training.

    Args:
        every: steps from one verified step to the next.
        replicated: whether all ranks hold the same weights and moments, whole.
        tell: takes a kind of event and its fields; called on all ranks.
        draws: `modeling.rank_symmetry.SharedDraws` of the model.
    """

    every: int
    replicated: bool
    tell: Callable[..., None]
    draws: Any = None
    _learned: Resting = field(default_factory=Resting)
    _frozen: Resting = field(default_factory=Resting)
    _twice: Twice | None = None
    _open: bool = False
    """Is the update of the step still to come?"""
    _unsteady: bool = False
    """Are gradients not verified any more, because they are not the same when they are computed again?"""

    # The story of a step

    def begin_step(self, trainer: Any) -> None:
        """A step begins; its rows have come. Every rank must call it."""
        model, step = trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step + 1
        self._open = True
        if not self._learned.taken:
            self._learned.take(learned_state(model, trainer.optimizer))
            self._frozen.take(frozen_weights(model))
        if step % self.every == 0:
            if self._twice is None:
                self._twice = Twice(model, self.draws)
            with TIMELINE.phase(VERIFICATION):
                self.check(trainer, step)

    def begin_pass(self, trainer: Any, inputs: Any, step: Any, count: Any) -> None:
        """The forward of a micro-batch is about to begin."""
        if self._twice is not None and (trainer.state.global_step + 1) % self.every == 0 and not self._unsteady:
            self._twice.begin(inputs, replace(step, micro_batch=replace(step.micro_batch, tensors={})), count)

    def saw(self, loss: Any) -> None:
        """The forward has returned its loss."""
        if self._twice is not None:
            self._twice.saw(loss)

    def drop(self) -> None:
        """The pass has ended."""
        if self._twice is not None:
            self._twice.drop()

    def before_update(self, trainer: Any, last: bool, compute: Callable[[Pass], Any]) -> None:
        """A backward pass has ended. Every rank must call it.

        Args:
            last: of the step.
            compute: the loss of a pass.
        """
        if not self._open:
            return
        with TIMELINE.phase(VERIFICATION):
            if self._twice is not None and self._twice.begun is not None:
                self._judge(trainer, self._twice.compare(compute))
            if last:
                self._open = False
                self._compare(trainer, trainer.state.global_step + 1, frozen=False)

    def end_step(self, trainer: Any) -> None:
        """The update has been made, and callbacks have seen it."""
        if not self._open:
            with TIMELINE.phase(VERIFICATION):
                self._learned.take(learned_state(trainer.accelerator.unwrap_model(trainer.model), trainer.optimizer))

    # Checks

    def check(self, trainer: Any, step: int) -> None:
        """Raise `SilentError`, on all ranks, where something has changed between updates, or ranks that should have the
        same weights have not. Every rank must call it.

        Args:
            step: the one that goes on, counted from 1.
        """
        self._compare(trainer, step, frozen=True)
        found = {**self._learned.read(), **self._frozen.read()}
        said = gather_objects((found, self._learned.sums() if self.replicated else {}))
        for rank, (changed, _) in enumerate(said):
            if changed:
                first = min(changed.values())
                names = [name for name, at in changed.items() if at == first]
                what = f"bits have changed in the memory of rank {rank} between two updates, in {_listed(names)}"
                self._raise(first, rank, _place(names[0]), names, what)
        if self.replicated:
            check_alike([sums for _, sums in said], self._raise, step)

    def _compare(self, trainer: Any, step: int, frozen: bool) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        self._learned.compare(learned_state(model, trainer.optimizer), step)
        if frozen:
            self._frozen.compare(frozen_weights(model), step)

    def _judge(self, trainer: Any, differences: list[Difference]) -> None:
        if not differences:
            return
        step = trainer.state.global_step + 1
        self.check(trainer, step)  # weights that have changed explain other gradients
        for found in differences:
            who = f"rank {found.rank}"
            if found.kind == "check":
                text = f"step {step}: rank {found.checker} has checked {who} with wrong gradients, of "
                text += f"{_listed(found.names)}; the run has not used them."
                self._tell(step, found.checker, "check", found.names, text)
            elif found.kind == "run":
                what = f"{who} has computed wrong gradients, of {_listed(found.names)}"
                self._raise(step, found.rank, "gradient", found.names, what)
            elif found.kind == "apart":
                what = (
                    f"rank {found.rank} and rank {found.checker} compute different gradients, each the same again, of "
                )
                self._raise(step, found.rank, "gradient", found.names, f"{what}{_listed(found.names)}")
            elif not self._unsteady:
                self._unsteady = True
                text = (
                    f"step {step}: gradients are not the same when they are computed again, of {_listed(found.names)}"
                )
                self.tell("notice", text=f"{text}; gradients are not verified any more.")

    def _raise(self, step: int, rank: int, place: str, names: list[str], what: str) -> None:
        _fail(self.tell, step, rank, place, names, what)

    def _tell(self, step: int, rank: int, place: str, names: list[str], text: str) -> None:
        _tell_of(self.tell, step, rank, place, names, text)


def check_saved_weights(trainer: Any, trained_only: bool, tell: Callable[..., None]) -> None:
    """Raise `SilentError`, on all ranks, where ranks that should hold the same weights do not. Every rank must call it
    before a checkpoint is committed: of such ranks the first one alone writes its weights.

    Args:
        trained_only: whether the checkpoint holds trained weights only.
        tell: as of `Verifier`.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    resting = Resting()
    resting.take({**learned_weights(model), **({} if trained_only else frozen_weights(model))})
    said = gather_objects(resting.sums())
    check_alike(said, functools.partial(_fail, tell), trainer.state.global_step)


def check_alike(sums: list[dict[str, int]], fail: Callable[[int, int, str, list[str], str], None], step: int) -> None:
    """Call `fail` where ranks that should hold the same have different sums.

    Args:
        sums: of each rank, by the names of tensors.
        fail: called with step, rank, place, names and what is wrong.
        step: that has not been made yet, or has just been.
    """
    names = [name for name, value in sums[0].items() if any(other.get(name) != value for other in sums)]
    if not names:
        return
    ranks = minority([tuple(part.get(name) for name in names) for part in sums])
    who = f"rank {ranks[0]} has other bits than the others"
    if len(ranks) > 1:
        who = f"ranks {', '.join(map(str, ranks))} have different bits"
    fail(step, ranks[0], _place(names[0]), names, f"{who} in {_listed(names)}")


def _fail(tell: Callable[..., None], step: int, rank: int, place: str, names: list[str], what: str) -> None:
    text = f"step {step}: {what}."
    _tell_of(tell, step, rank, place, names, text)
    raise SilentError(text)


def _tell_of(tell: Callable[..., None], step: int, rank: int, place: str, names: list[str], text: str) -> None:
    tell("silent_error", step=step, rank=rank, place=place, names=names[:_NAMED], text=text)


def _place(name: str) -> str:
    return "moment" if " of " in name and not name.startswith(("shard of ", "master weights")) else "weight"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
