"""What all ranks agree on before an update: it may be made, or a loss is not finite, or they are asked to stop or to
move.

All stop together before an update that any rank's loss would spoil, or where any is asked to stop. They tell each other
while the backward pass runs, so that no rank waits for another between forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.errors import NonFiniteLossError

_FINE, _MOVE, _BAD, _STOP = 0.0, 0.5, 1.0, 2.0
"""What a rank says of its micro-batch. The largest of all ranks decides."""


class Agreement:
    """`begin` after each forward, `settle` before the update; both on every rank."""

    def __init__(
        self, locate_row: Callable[[int], str], stop_asked: Callable[[], bool], move_asked: Callable[[], bool]
    ):
        self._locate_row, self._stop_asked, self._move_asked = locate_row, stop_asked, move_asked
        self._pending: tuple[torch.Tensor, Any, torch.Tensor, Any] | None = None
        self.stopped = False
        """Has the training ended because it was asked to?"""
        self.moving = False
        """Does it end with a checkpoint after the step it is in, to go on elsewhere?"""

    def begin(self, loss: torch.Tensor, micro_batch: Any) -> None:
        """Say what this rank has: the loss of its micro-batch, detached, and what it was asked."""
        said = torch.logical_not(torch.isfinite(loss)).any().to(torch.float32) * _BAD
        if self._stop_asked():
            said.fill_(_STOP)
        elif self._move_asked():
            said.clamp_(min=_MOVE)
        work = (
            dist.all_reduce(said, op=dist.ReduceOp.MAX, async_op=True)
            if dist.is_initialized() and dist.get_world_size() > 1
            else None
        )
        self._pending = (said, work, loss, micro_batch)

    def settle(self) -> None:
        """Hear the others. Raises `NonFiniteLossError` on all ranks if the loss of any is NaN or infinite."""
        if self._pending is None:
            return
        (said, work, loss, micro_batch), self._pending = self._pending, None
        if work is not None:
            work.wait()
        if said.item() == _BAD:
            raise self._error(loss, micro_batch)
        self.moving |= said.item() == _MOVE
        self.stopped |= said.item() == _STOP

    def drop(self) -> None:
        """An error came in between."""
        self._pending = None

    def _error(self, loss: torch.Tensor, micro_batch: Any) -> NonFiniteLossError:
        mine = None if torch.isfinite(loss).all() else [int(row) for row in micro_batch.rows]
        found = gather_objects((float(loss), mine))
        value, rows = next((value, rows) for value, rows in found if rows is not None)
        shown = ", ".join(f"{row} ({self._locate_row(row)})" for row in rows[:16])
        return NonFiniteLossError(
            f"the loss is {value} at step {micro_batch.step + 1}, before its update; rows of the micro-batch: {shown}."
        )
