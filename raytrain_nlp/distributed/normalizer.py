"""The normalizer of a global batch's loss: its number of rows, which the plan knows, or of tokens all ranks predict."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from raytrain_nlp.distributed.device import to_device


class GlobalWeight:
    """The normalizer of one global batch. Every rank must construct it before the first forward of an update: the
    all-reduce of token counts runs during that forward.

    Args:
        micro_batches: this rank's micro-batches of the global batch.
        by_rows: whether the loss is a mean over rows; else over predicted tokens.
        device: of the counts.
    """

    def __init__(self, micro_batches: list[Any], by_rows: bool, device: Any):
        self._value: float | torch.Tensor | None = micro_batches[0].global_rows if by_rows else None
        if by_rows:
            return
        count = sum(micro_batch.weight for micro_batch in micro_batches)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._count = to_device(torch.tensor(count, dtype=torch.int64), device)
            self._work = dist.all_reduce(self._count, async_op=True)
        else:
            self._value = float(max(count, 1))

    def value(self) -> float | torch.Tensor:
        """The number of rows; or that of tokens, at least 1: of several ranks a float64 tensor of shape [], on the
        device so that the host need not synchronize with it.
        """
        if self._value is None:
            self._work.wait()
            self._value = self._count.clamp(min=1).to(torch.float64)
        return self._value
