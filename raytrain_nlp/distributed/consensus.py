"""The ranks' consensus before an optimizer update: go on, fail because a loss is not finite, stop, or save a checkpoint
and move to other workers.

All ranks end at the same step where the loss of one is not finite, or one is asked to stop or to move. The all-reduce
that finds this out runs during the backward pass, so that no rank waits for another between forward and backward.

On a GPU the host does not wait for the result of a step before it launches the next one. It reads it a step later, or
where it waits for the GPU anyway: before a log, an evaluation or a checkpoint. An update by a loss that is not finite
is then made, but never saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.device import to_host
from raytrain_nlp.errors import NonFiniteLossError

_FINE, _MOVE, _BAD, _STOP = 0.0, 0.5, 1.0, 2.0
"""A rank's state, in increasing precedence: the maximum over all ranks decides."""


@dataclass
class _Begun:
    """A consensus that is under way."""

    said: torch.Tensor
    """The maximum of the ranks' states, on their device; copied to the host by `Agreement.settle`."""
    work: Any
    loss: torch.Tensor
    micro_batch: Any
    copied: Any = None
    """The CUDA event of the copy; None on CPU."""


class Agreement:
    """The consensus of one training. Every rank calls `begin` after each forward, `settle` before the update, and
    `settle_all` before what is done between steps.

    Args:
        locate_row: from row id to `file:line`, for the error message.
        stop_asked: is this rank asked to end, without a checkpoint?
        move_asked: is it asked to commit a checkpoint after this step and end, so that other workers go on from it?
    """

    def __init__(
        self, locate_row: Callable[[int], str], stop_asked: Callable[[], bool], move_asked: Callable[[], bool]
    ):
        self._locate_row, self._stop_asked, self._move_asked = locate_row, stop_asked, move_asked
        self._pending: _Begun | None = None
        self._unread: deque[_Begun] = deque()
        self.stopped = False
        """Was any rank asked to stop? All ranks then end before their next step, without a checkpoint."""
        self.moving = False
        """Was any rank asked to move? All ranks then commit a checkpoint after this step and end."""

    def begin(self, loss: torch.Tensor, micro_batch: Any) -> None:
        """Start the asynchronous all-reduce of the ranks' states.

        Args:
            loss: the detached loss of this rank's micro-batch, any shape.
            micro_batch: its `MicroBatch`, for the error message.
        """
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
        self._pending = _Begun(said, work, loss, micro_batch)

    def settle(self) -> None:
        """Take the result of the last `begin` on CPU, of the one before on a GPU; without one, do nothing.

        Raises:
            NonFiniteLossError: the loss of some rank is NaN or infinite, and no rank was asked to stop; on all ranks.
        """
        if self._pending is None:
            return
        begun, self._pending = self._pending, None
        if begun.work is not None:
            begun.work.wait()  # on a GPU its stream waits, the host does not
        if _read_later(begun.said):
            begun.said, begun.copied = to_host(begun.said)
        self._unread.append(begun)
        while len(self._unread) > (begun.copied is not None):
            self._read(self._unread.popleft())

    def settle_all(self) -> None:
        """Take all results, and wait for them. Every rank must call it at the same steps. Raises as `settle`."""
        while self._unread:
            self._read(self._unread.popleft())

    def _read(self, begun: _Begun) -> None:
        if begun.copied is not None:
            begun.copied.synchronize()
        said = float(begun.said)
        if said == _BAD:
            raise self._error(begun)
        self.moving |= said == _MOVE
        self.stopped |= said == _STOP

    def drop(self) -> None:
        """Forget the last `begin`, because the step ended with an error before `settle`."""
        self._pending = None

    def _error(self, begun: _Begun) -> NonFiniteLossError:
        loss, micro_batch = begun.loss, begun.micro_batch
        mine = None if torch.isfinite(loss).all() else [int(row) for row in micro_batch.rows]
        found = gather_objects((float(loss), mine))
        value, rows = next((value, rows) for value, rows in found if rows is not None)
        shown = ", ".join(f"{row} ({self._locate_row(row)})" for row in rows[:16])
        return NonFiniteLossError(
            f"the loss is {value} at step {micro_batch.step + 1}, before its update; rows of the micro-batch: {shown}."
        )


def _read_later(value: torch.Tensor) -> bool:
    return value.device.type != "cpu"
