"""The feed: Ray Data fetches and pads the micro-batches of a plan on the cluster's CPUs, and streams them to one rank.

    plan --step numbers--> Ray Data (map_batches) --micro-batches of one rank, in order--> TrainLoader --> Trainer

Each rank runs a stream of its own over its slice of every global batch, so that no rank waits for another's data. All
ranks get equally many micro-batches because they follow the same plan. One stream spans all remaining epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.data.shards import written_at
from raytrain_nlp.data.split import MicroBatch, Split, SplitSpec
from raytrain_nlp.data.windows import WindowedSpec, WindowedSplit

_BLOCK_BYTES = 1 << 20
_MAX_TASKS = 1_000
"""Most remote functions of a stream. Each yields its blocks one by one, so that this limits nothing else."""


def stream(
    spec: SplitSpec | WindowedSpec,
    *,
    start: int,
    stop: int,
    world_size: int,
    rank: int,
    accumulation: int = 1,
    cpus: float = 0.5,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the global batches from `start` up to `stop`, in order, as torch tensors. The
    cluster prepares them ahead of their use.

    Args:
        start: first step of the plan, counted over all epochs.
        stop: the step after the last.
        accumulation: micro-batches of each rank in a global batch.
        cpus: logical CPUs that Ray Data may use for this stream.
    """
    import safetensors.torch

    if start >= stop:  # a run that is resumed from the checkpoint of its last step
        return
    steps = _steps_per_block(spec, world_size)
    for table in _execute(spec, start, stop, steps, world_size, rank, accumulation, cpus):
        for row in table.to_pylist():
            tensors = {
                name: tensor.long() if not tensor.is_floating_point() else tensor
                for name, tensor in safetensors.torch.load(row["tensors"]).items()
            }
            yield MicroBatch(**{**row, "rows": np.array(row["rows"], dtype=np.int64), "tensors": tensors})


def _execute(
    spec: SplitSpec | WindowedSpec,
    start: int,
    stop: int,
    steps: int,
    world_size: int,
    rank: int,
    accumulation: int,
    cpus: float,
) -> Iterator[pa.Table]:
    import ray.data
    from ray.data.read_api import from_blocks

    blocks = math.ceil((stop - start) / steps)
    # block numbers are tables in memory: reading them would cost a remote function of its own before the first batch,
    # and `from_arrow` one of a whole CPU, which is never free where there is room for workers and feeds only
    parts = np.array_split(np.arange(blocks, dtype=np.int64), min(blocks, _MAX_TASKS))
    source = from_blocks([pa.table({"id": part}) for part in parts])
    context = source.context  # a copy: the context of the process belongs to the user
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = (
        -1
    )  # the consumer may pause for any time, for an evaluation or a checkpoint
    dataset = source.map_batches(
        _make_blocks,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        # with "DEFAULT", Ray uses nodes without GPUs first; Ray Data's own default, "SPREAD", does not
        scheduling_strategy="DEFAULT",
        fn_kwargs={
            "spec": spec,
            "start": start,
            "stop": stop,
            "steps": steps,
            "world_size": world_size,
            "rank": rank,
            "accumulation": accumulation,
        },
    )
    return iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))


def _make_blocks(
    batch: dict[str, np.ndarray],
    spec: SplitSpec | WindowedSpec,
    start: int,
    stop: int,
    steps: int,
    world_size: int,
    rank: int,
    accumulation: int,
) -> pa.Table:
    """The function that Ray Data maps over the numbers of blocks. It returns one Arrow row for each micro-batch, with
    the tensors as bytes of safetensors.
    """
    import safetensors.numpy

    split = open_split(spec)
    made: list[dict[str, Any]] = []
    for block in batch["id"]:
        first = start + int(block) * steps
        for step in range(first, min(first + steps, stop)):
            for micro in split.micro_batches(step, world_size, rank, accumulation):
                made.append(
                    {**vars(micro), "rows": micro.rows.tolist(), "tensors": safetensors.numpy.save(micro.tensors)}
                )
    return pa.Table.from_pylist(made, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("micro", pa.int32()),
        ("rows", pa.list_(pa.int64())),
        ("weight", pa.int64()),
        ("global_rows", pa.int64()),
        ("global_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("padded_tokens", pa.int64()),
        ("tensors", pa.large_binary()),
    ]
)
_open: dict[str, Split | WindowedSplit] = {}


def open_split(spec: SplitSpec | WindowedSpec) -> Split | WindowedSplit:
    """The split of a spec, opened once in each process: the remote functions of a stream run one after another in one
    process.
    """
    key = repr(spec) if isinstance(spec, WindowedSpec) else f"{written_at(spec.tokens)} {spec!r}"
    if key not in _open:
        _open.clear()
        _open[key] = WindowedSplit(spec) if isinstance(spec, WindowedSpec) else Split(spec)
    return _open[key]


def _steps_per_block(spec: SplitSpec | WindowedSpec, world_size: int) -> int:
    """Number of global batches in a block: enough that the fixed cost of a block does not matter, few enough that the
    first block is ready soon.
    """
    return int(min(max(_BLOCK_BYTES / 4 / max(open_split(spec).tokens_per_step * 6 / world_size, 1), 1), 64))
