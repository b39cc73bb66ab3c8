"""What the loss of a global batch is a mean over: its rows, which the plan knows, or the tokens all ranks predict."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class GlobalWeight:
    """Made by all ranks before the first forward of an update. They count tokens while that runs, so that no rank waits
    for another before it has something to say."""

    def __init__(self, micro_batches: list[Any], by_rows: bool, device: Any):
        self._value: float | torch.Tensor | None = micro_batches[0].global_rows if by_rows else None
        if not by_rows:
            self._count = torch.tensor(
                sum(micro_batch.weight for micro_batch in micro_batches), dtype=torch.int64, device=device
            )
            self._work = (
                dist.all_reduce(self._count, async_op=True)
                if dist.is_initialized() and dist.get_world_size() > 1
                else None
            )

    def value(self) -> float | torch.Tensor:
        """Rows, or tokens as a float64 tensor of shape [] on the device, which nothing waits for; 1 where there is
        none, for a loss that is 0."""
        if self._value is None:
            if self._work is not None:
                self._work.wait()
            self._value = self._count.clamp(min=1).to(torch.float64)
        return self._value
