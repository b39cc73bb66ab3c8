"""Feed: the plan from step k on, fetched and padded by Ray Data on the cluster's CPUs, handed to one rank as a sized loader.

    plan --step numbers--> Ray Data (map_batches) --micro-batches of one rank, in order--> FeedLoader --> Trainer

Each rank runs its own stream over its own slice of every global batch, so no rank waits for another's data, and equal
numbers of micro-batches on all ranks follow from the plan, not from a splitter. One stream spans all epochs that are left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.data.packing import Blocks
from raytrain_nlp.data.plan import Plan, PlanSpec, split_batch
from raytrain_nlp.data.shards import TokenStore, open_store
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Packing, Place

_BLOCK_BYTES = 1 << 20
_MAX_TASKS = 1_000
"""Remote functions a stream is made of at most; each yields its blocks one by one, so their number bounds nothing else."""


@dataclass(frozen=True)
class SplitSpec:
    """One split as all ranks see it: which rows, in which batches, how they become tensors. Plain values only."""

    tokens: str
    """Folder of the token store."""
    rows_file: str | None
    """`.npy` of the store's rows that are used, in order; None = the first `plan.num_rows` rows."""
    blocks: str | None
    """Folder of the blocks the store's rows are packed into; what the plan calls rows are these then."""
    packing: Packing | None
    plan: PlanSpec
    token_counts: tuple[int, ...] | None
    task: Any
    """The job's `task:` section."""
    context: CollateContext


@dataclass(frozen=True)
class MicroBatch:
    """What one forward of one rank sees, and its place in the plan."""

    step: int
    """Global batch it belongs to, counted over all epochs."""
    micro: int
    rows: np.ndarray
    """Row ids of the split; empty when this rank has no part in the batch (its tensors then repeat a row of it)."""
    weight: int
    """What the loss of this micro-batch is a mean over: rows, or predicted tokens."""
    global_rows: int
    global_tokens: int
    """Tokens of the whole global batch, without padding."""
    tokens: int
    """Tokens of this micro-batch, without padding."""
    padded_tokens: int
    """With padding."""
    tensors: dict[str, Any]


class Split:
    """A split opened for reading: the store, the plan, and `row id -> store row`."""

    def __init__(self, spec: SplitSpec):
        self.spec = spec
        self.store: TokenStore = open_store(spec.tokens)
        self._rows = np.load(spec.rows_file, mmap_mode="r") if spec.rows_file else None
        self._blocks = Blocks(Path(spec.blocks), spec.packing) if spec.blocks else None
        lengths = self._blocks.lengths if self._blocks else self.store.lengths if self._rows is None else self.store.lengths[self._rows]
        self.plan = Plan(spec.plan, lengths, spec.token_counts)
        self.task = build_task(spec.task)

    def store_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._rows is None else self._rows[rows]

    def fetch(self, rows: np.ndarray) -> dict[str, list]:
        """The columns of row ids."""
        return self._blocks.fetch(self.store, rows) if self._blocks else self.store.fetch(self.store_rows(rows))

    def locate(self, row: int) -> str:
        """`file:line` of a row id; of a block, where its first row begins."""
        first = self._blocks.segments(row)[0][0] if self._blocks else int(self.store_rows(np.array([row]))[0])
        path, line = self.store.locate(first)
        return f"{path}:{line}"

    def micro_batches(self, step: int, world_size: int, rank: int, accumulation: int) -> list[MicroBatch]:
        """This rank's micro-batches of one global batch, fetched and padded (NumPy tensors)."""
        epoch, _, rows = self.plan.at(step)
        tokens = int(self.plan.lengths[rows].sum())
        made = []
        for micro, parts in enumerate(split_batch(rows, world_size, accumulation)):
            part = parts[rank]
            shown = part if len(part) else rows[:1]
            tensors = self.task.collate(self.fetch(shown), self.spec.context, Place(self.spec.plan.seed, epoch, shown))
            weight = self._weigh(tensors) if len(part) and not self.task.rows_weigh else len(part)
            own = int(self.plan.lengths[shown].sum())
            made.append(MicroBatch(step, micro, part, weight, len(rows), tokens, own, tensors["input_ids"].size, tensors))
        return made

    def _weigh(self, tensors: dict[str, Any]) -> int:
        """Tokens that are predicted. Where none are, one is, with weight 0: the mean over none would be no number."""
        first = int(self.task.shifts_labels)
        labels = tensors["labels"][:, first:]
        weight = int((labels != IGNORED).sum())
        if not weight:
            labels[0, 0] = tensors["input_ids"][0, first]
        return weight


def stream(
    spec: SplitSpec, *, start: int, stop: int, world_size: int, rank: int, accumulation: int = 1, cpus: float = 0.5
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of global batches [start, stop), with torch tensors, prepared ahead on the cluster."""
    import safetensors.torch

    steps = _steps_per_block(spec, world_size)
    for table in _execute(spec, start, stop, steps, world_size, rank, accumulation, cpus):
        for row in table.to_pylist():
            tensors = {name: tensor.long() if not tensor.is_floating_point() else tensor for name, tensor in safetensors.torch.load(row["tensors"]).items()}
            yield MicroBatch(
                **{**row, "rows": np.array(row["rows"], dtype=np.int64), "tensors": tensors}
            )


def _execute(spec: SplitSpec, start: int, stop: int, steps: int, world_size: int, rank: int, accumulation: int, cpus: float) -> Iterator[pa.Table]:
    import ray.data

    blocks = math.ceil((stop - start) / steps)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = -1  # an evaluation or a checkpoint may pause this consumer for any time
    # block numbers as a table in memory: a read stage would cost a task of its own before the first batch
    parts = np.array_split(np.arange(blocks, dtype=np.int64), min(blocks, _MAX_TASKS))
    dataset = ray.data.from_arrow([pa.table({"id": part}) for part in parts]).map_batches(
        _make_blocks,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        fn_kwargs={"spec": spec, "start": start, "stop": stop, "steps": steps, "world_size": world_size, "rank": rank, "accumulation": accumulation},
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))


def _make_blocks(
    batch: dict[str, np.ndarray], spec: SplitSpec, start: int, stop: int, steps: int, world_size: int, rank: int, accumulation: int
) -> pa.Table:
    """The remote function: block numbers in, micro-batches out, one Arrow row each with its tensors as safetensors bytes."""
    import safetensors.numpy

    split = _open_split(spec)
    made: list[dict[str, Any]] = []
    for block in batch["id"]:
        first = start + int(block) * steps
        for step in range(first, min(first + steps, stop)):
            for micro in split.micro_batches(step, world_size, rank, accumulation):
                made.append({**vars(micro), "rows": micro.rows.tolist(), "tensors": safetensors.numpy.save(micro.tensors)})
    return pa.Table.from_pylist(made, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [("step", pa.int64()), ("micro", pa.int32()), ("rows", pa.list_(pa.int64())), ("weight", pa.int64()), ("global_rows", pa.int64()),
     ("global_tokens", pa.int64()), ("tokens", pa.int64()), ("padded_tokens", pa.int64()), ("tensors", pa.large_binary())]
)  # fmt: skip
_open: dict[str, Split] = {}


def _open_split(spec: SplitSpec) -> Split:
    """The split of this process, opened once: remote functions of one stream run one after another in one process."""
    key = f"{spec.tokens}|{spec.rows_file}|{spec.blocks}|{spec.plan}|{spec.task}"
    if key not in _open:
        _open.clear()
        _open[key] = Split(spec)
    return _open[key]


def _steps_per_block(spec: SplitSpec, world_size: int) -> int:
    """Global batches a block holds: enough that a block's fixed cost vanishes, few enough that the first comes soon."""
    store = open_store(spec.tokens)
    mean = spec.packing.block_size if spec.packing else store.manifest["tokens"] / max(store.num_rows, 1)
    tokens = spec.plan.batch_tokens or mean * spec.plan.global_batch_size
    return int(min(max(_BLOCK_BYTES / 4 / max(tokens * 6 / world_size, 1), 1), 64))
