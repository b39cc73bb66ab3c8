"""The rows of a global batch side by side on every rank, for a loss in which each row is compared with all others.

Every rank computes the loss of the whole global batch from everybody's vectors, and the gradient for its own rows
alone. Added up over ranks and micro-batches these are the gradient of that loss, so it is the same at any number of
either; no gradient of a vector travels. With several micro-batches the vectors of the others are computed first,
without a graph, as in GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup"): a second forward for each row.

    trainer --begin(micro-batch)--> POOL <--join(own vectors)-- the model's forward --> loss --weigh--> backward pass
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Values = dict[str, torch.Tensor]
"""What is known of some rows: tensors [rows, ...] by name."""


@dataclass(frozen=True)
class _Part:
    """The place of a micro-batch in its global batch."""

    number: int
    """Of this micro-batch among those of all ranks."""
    sizes: list[int]
    """Rows of each of them, in order."""

    @property
    def rows(self) -> int:
        return self.sizes[self.number]

    @property
    def first(self) -> int:
        return sum(self.sizes[: self.number])


class RowPool:
    """The global batch of this process's training. Outside of a step there is none: a loss is then of the rows of its
    own forward.
    """

    def __init__(self) -> None:
        self._part: _Part | None = None
        self._known: Values | None = None

    def begin(self, micro_batch: Any, accumulation: int) -> None:
        """A forward on `micro_batch` (a `MicroBatch`) follows.

        Args:
            accumulation: micro-batches of each rank in a global batch.
        """
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        # as `data.plan.split_batch` divides it
        sizes = [len(part) for part in np.array_split(np.arange(micro_batch.global_rows), ranks * accumulation)]
        self._part = _Part(micro_batch.micro * ranks + (dist.get_rank() if ranks > 1 else 0), sizes)

    def end(self) -> None:
        """The step of the micro-batch is over."""
        self._part = None

    def learn(self, values: list[Values], accumulation: int, rows: int) -> None:
        """Take what is known of this rank's micro-batches before the first of them is trained. Every rank must call it.

        Args:
            values: of each micro-batch in order; of one without rows what stands for them.
            rows: of the global batch.
        """
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        sizes = [len(part) for part in np.array_split(np.arange(rows), ranks * accumulation)]
        self._known = _gathered(values, sizes)

    def forget(self) -> None:
        """The vectors of another global batch are wanted."""
        self._known = None

    def join(self, own: Values) -> Values:
        """Those of all rows of the global batch, in its order; only this rank's own have a graph. Every rank must call
        it. Outside of a step: `own`.
        """
        part = self._part
        if part is None:
            return own
        detached = {name: value.detach() for name, value in own.items()}
        whole = self._known or (_gathered([detached], part.sizes) if len(part.sizes) > 1 else own)
        if not part.rows:  # the row is shown only because collectives need every rank
            return whole
        first, last = part.first, part.first + part.rows
        return {name: torch.cat([value[:first], own[name], value[last:]]) for name, value in whole.items()}

    def weigh(self, loss: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The loss of the whole global batch as that of this micro-batch: of the same value, with a gradient that makes
        up for the share by which the trainer multiplies it.

        Args:
            loss: shape [].
            own: this micro-batch's vectors.
        """
        part = self._part
        if part is None:
            return loss
        if not part.rows:
            return loss.detach() + 0 * own.sum()
        return loss.detach() + (loss - loss.detach()) * (sum(part.sizes) / part.rows)


def _gathered(values: list[Values], sizes: list[int]) -> Values:
    """The values of all ranks' micro-batches, one after the other: tensors [rows of the global batch, ...].

    Args:
        values: of each of this rank's micro-batches.
        sizes: rows of each micro-batch of all ranks; those of the first one come first, a rank after the other.
    """
    most, ranks = max(sizes), len(sizes) // len(values)
    found = {}
    for name in values[0]:
        padded = torch.stack([_filled(part[name], most) for part in values])
        whole = padded
        if ranks > 1:
            whole = padded.new_empty((ranks * len(values), *padded.shape[1:]))
            dist.all_gather_into_tensor(whole, padded)
        ordered = whole.unflatten(0, (ranks, len(values))).transpose(0, 1).flatten(0, 1)  # [parts, rows, ...]
        found[name] = torch.cat([part[:size] for part, size in zip(ordered, sizes, strict=True)])
    return found


def _filled(value: torch.Tensor, rows: int) -> torch.Tensor:
    """As many rows as are asked for: zeros behind those that are there, or the first of them."""
    missing = rows - len(value)
    return torch.cat([value, value.new_zeros((missing, *value.shape[1:]))]) if missing > 0 else value[:rows]


POOL = RowPool()
"""Of this process: it has one training at a time."""
