"""A split as a rank reads it: which rows there are, in which batches, and how a rank's part of a batch becomes
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks import TaskConfig
from raytrain_nlp.data.mixture import open_plan
from raytrain_nlp.data.packing import Blocks
from raytrain_nlp.data.plan import PlanSpec, split_batch
from raytrain_nlp.data.shards import TokenStore, open_store
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Packing, Place


@dataclass(frozen=True)
class SplitSpec:
    """Everything that a rank needs to read a split. Plain values."""

    tokens: str
    """Folder of the token store."""
    rows_file: str | None
    """`.npy` file with the ids of the store's rows that are used, in order; None: the first `plan.num_rows` rows."""
    blocks: str | None
    """Folder of the blocks into which rows are packed; the rows of the plan are then these blocks. None without
    packing."""
    packing: Packing | None
    plan: PlanSpec
    token_counts: tuple[int, ...] | None
    """`Plan.token_counts`, counted by the driver; None without `batch_tokens`."""
    task: TaskConfig
    """The job's `task:` section."""
    context: CollateContext


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass of one rank, and its position in the plan."""

    step: int
    """The global batch it belongs to, counted over all epochs."""
    micro: int
    """Index among this rank's micro-batches of the global batch."""
    rows: np.ndarray
    """Row ids in the split, int64 [rows]. Empty where this rank has no part of the batch; its tensors then hold some
    row of the batch, with weight 0."""
    weight: int
    """The number of rows or predicted tokens that the loss of this micro-batch is the mean of."""
    global_rows: int
    """Rows of the global batch."""
    global_tokens: int
    """Tokens of the global batch, without padding."""
    tokens: int
    """Tokens of this micro-batch, without padding."""
    padded_tokens: int
    """Tokens of this micro-batch, with padding."""
    tensors: dict[str, Any]
    """Arguments of the model's forward by name, shape [rows, longest row] for tokens."""


class Split:
    """A split opened for reading: its tokens and its plan."""

    def __init__(self, spec: SplitSpec):
        self.spec = spec
        self.store: TokenStore = open_store(spec.tokens)
        if spec.rows_file:
            storage_of(spec.rows_file).fetch(Path(spec.rows_file))
        self._rows = np.load(spec.rows_file, mmap_mode="r") if spec.rows_file else None
        self._blocks = Blocks(Path(spec.blocks), spec.packing, self._rows) if spec.blocks and spec.packing else None
        lengths = (
            self._blocks.lengths
            if self._blocks
            else self.store.lengths
            if self._rows is None
            else self.store.lengths[self._rows]
        )
        self.plan = open_plan(spec.plan, lengths, spec.token_counts)
        self.task = build_task(spec.task)

    def store_rows(self, rows: np.ndarray) -> np.ndarray:
        """Row ids of the store, given row ids of the split; not with packing."""
        return rows if self._rows is None else self._rows[rows]

    def fetch(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """The columns of the given row ids of the split."""
        return self._blocks.fetch(self.store, rows) if self._blocks else self.store.fetch(self.store_rows(rows))

    def locate(self, row: int) -> str:
        """Where a row was read from, as `file:line`; of a block, where its first row was."""
        first = self._blocks.segments(row)[0][0] if self._blocks else int(self.store_rows(np.array([row]))[0])
        path, line = self.store.locate(first)
        return f"{path}:{line}"

    @property
    def tokens_per_step(self) -> float:
        """Approximate number of tokens in a global batch."""
        spec = self.spec
        mean = spec.packing.block_size if spec.packing else self.store.manifest["tokens"] / max(self.store.num_rows, 1)
        return spec.plan.batch_tokens or mean * (spec.plan.global_batch_size or 1)

    def micro_batches(self, step: int, world_size: int, rank: int, accumulation: int) -> list[MicroBatch]:
        """This rank's micro-batches of the global batch of a step, fetched and padded, with NumPy arrays as tensors."""
        epoch, index, _ = self.plan.at(step)
        return self.micro_batches_of(epoch, index, step, world_size, rank, accumulation)

    def micro_batches_of(
        self, epoch: int, index: int, step: int, world_size: int, rank: int, accumulation: int, first_row: int = 0
    ) -> list[MicroBatch]:
        """As `micro_batches`, for a global batch given by its position in the plan.

        Args:
            epoch: epoch of this split's plan.
            index: index in the epoch.
            step: step of the run that sees the batch.
            first_row: added to row ids.
        """
        rows = self.plan.batch(epoch, index)
        lengths = self.plan.lengths[rows]
        tokens, longest = int(lengths.sum()), int(lengths.max())
        made = []
        for micro, parts in enumerate(split_batch(rows, world_size, accumulation)):
            part = parts[rank]
            shown = part if len(part) else rows[:1]
            tensors = self.task.collate(
                self.fetch(shown), self.spec.context, Place(self.spec.plan.seed, epoch, shown + first_row, longest)
            )
            weight = self.weigh(tensors) if len(part) and not self.task.rows_weigh else len(part)
            own = int(self.plan.lengths[shown].sum())
            made.append(
                MicroBatch(
                    step,
                    micro,
                    part + first_row,
                    weight,
                    len(rows),
                    tokens,
                    own,
                    sum(tensors[name].size for name in self.task.token_inputs),
                    tensors,
                )
            )
        return made

    def weigh(self, tensors: dict[str, Any]) -> int:
        """Number of tokens that are predicted. Where there are none, one label is set in `tensors`, as a mean over no
        token would be NaN; the weight stays 0.
        """
        first = int(self.task.shifts_labels)
        labels = tensors["labels"][:, first:]
        weight = int((labels != IGNORED).sum())
        if not weight:
            labels[0, 0] = tensors["input_ids"][0, first]
        return weight
