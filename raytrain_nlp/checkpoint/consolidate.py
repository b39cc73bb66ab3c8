"""The whole weights of a checkpoint, whichever ZeRO stage and number of workers wrote it, one parameter in memory at a
time.

    stage 0       model.state                                  all weights
    stage 1, 2    STEP/mp_rank_00_model_states.pt              all weights, as the forward pass saw them
    stage 3       STEP/zero_pp_rank_R_mp_rank_00_*.pt          of each parameter every rank has one Rth, in fp32, padded to equal parts

The order and the padding of stage 3 are those of DeepSpeed's `utils/zero_to_fp32.py`, which reads its own, pickled
files.
"""  # noqa: E501

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from raytrain_nlp.checkpoint.state import StoredTensor, open_state
from raytrain_nlp.checkpoint.store import Checkpoint
from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.storage.names import UnsafeName, part


def load_weights(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Load the weights and buffers of a checkpoint by name, on CPU; those of an adapter hold trained parameters only.
    Tied parameters are one tensor under several names.

    Args:
        dtype: what floating tensors are converted to; None: as they are stored.

    Raises:
        CheckpointError: a file is not one of such a checkpoint, or parts do not add up to the parameters.
    """
    weights: dict[str, torch.Tensor] = {}
    known: dict[str, torch.Tensor] = {}
    for name, key, stored in _parameters(checkpoint):
        if key not in known:
            tensor = stored()
            known[key] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        weights[name] = known[key]
    return weights


def each_weight(checkpoint: Checkpoint) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Name of each parameter and buffer of a checkpoint, tied ones once, and a function that loads it as `load_weights`
    does: one in memory at a time.
    """
    seen = set()
    for name, key, stored in _parameters(checkpoint):
        if key not in seen:
            seen.add(key)
            yield name, stored


def _parameters(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Any]]:
    """For each parameter and buffer: name, a key that tied parameters share, and a function that reads the tensor."""
    folder, stage = checkpoint.path, checkpoint.manifest.zero_stage
    if (folder / "model.state").exists():
        yield from _of_tree(open_state(folder / "model.state"))
    elif stage == 3:
        yield from _of_partitions(folder, checkpoint.manifest.world_size)
    else:
        yield from _of_tree(open_state(model_file(folder), "module"))


def _of_tree(tree: dict[str, StoredTensor]) -> Iterator[tuple[str, str, Any]]:
    for name, stored in tree.items():
        yield name, stored.name, stored.load


def _of_partitions(folder: Path, world_size: int) -> Iterator[tuple[str, str, Any]]:
    def of_model(key: str, rank: int = 0) -> Any:
        return open_state(model_file(folder, rank), key)

    module, groups = of_model("module"), of_model("param_shapes")
    for name in of_model("buffer_names") or ():
        if name in module:
            yield name, name, module[name].load
    frozen = [of_model("frozen_param_fragments", rank) or {} for rank in range(world_size)]
    for name, shape in (of_model("frozen_param_shapes") or {}).items():
        if name in frozen[0]:
            yield name, name, lambda name=name, shape=shape: _join([part[name].load() for part in frozen], shape)
    ranks = [
        Flat(open_state(optimizer_file(folder, rank), "optimizer_state_dict", "fp32_flat_groups"))
        for rank in range(world_size)
    ]
    start = 0
    for name, shape in (pair for group in groups for pair in group.items()):
        stop = start + math.ceil(math.prod(shape) / world_size)
        yield (
            name,
            name,
            lambda start=start, stop=stop, shape=shape: _join([flat.read(start, stop) for flat in ranks], shape),
        )
        start = stop
    if any(flat.size != start for flat in ranks):
        raise CheckpointError(f"{folder} holds {ranks[0].size} values on each rank, its parameters {start}.")
    known = {name for group in groups for name in group}
    shared = of_model("shared_params") or {}
    for name, of in shared.items() if isinstance(shared, dict) else shared:
        if of in known:
            yield name, of, None  # read already


class Flat:
    """Stored tensors of one dimension, addressed as if they were concatenated; read from their files on demand."""

    def __init__(self, groups: list[StoredTensor]):
        self._groups = groups
        self._starts = [0, *accumulate(group.size for group in groups)]
        self.size = self._starts[-1]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The values from `start` to `stop`, shape [stop - start]. Raises `CheckpointError` where there are fewer."""
        parts = []
        while start < stop:
            group = bisect_right(self._starts, start) - 1
            first, end = self._starts[group], min(stop, self._starts[group + 1])
            if end <= start:
                raise CheckpointError("a part of the checkpoint is too short for its parameters.")
            parts.append(self._groups[group].part(start - first, end - first))
            start = end
        return torch.cat(parts) if len(parts) > 1 else parts[0] if parts else torch.zeros(0)


def _join(parts: list[torch.Tensor], shape: Any) -> torch.Tensor:
    """The equal parts of all ranks as one parameter, without the padding at its end."""
    return torch.cat([part.reshape(-1) for part in parts])[: math.prod(shape)].reshape(tuple(shape)).clone()


def model_file(folder: Path, rank: int | None = None) -> Path:
    """DeepSpeed's file with the model's state: that of `rank` under ZeRO-3, else (None) the only one."""
    return (
        folder
        / tag_of(folder)
        / (f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if rank is not None else "mp_rank_00_model_states.pt")
    )


def optimizer_file(folder: Path, rank: int) -> Path:
    """DeepSpeed's file with a rank's shard of the optimizer state; with bf16 its name has the prefix `bf16_`."""
    path = folder / tag_of(folder) / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    return path if path.exists() else path.with_name(f"bf16_{path.name}")


def tag_of(folder: Path) -> str:
    """The folder of DeepSpeed's files in a checkpoint, as its `latest` names it. Raises `CheckpointError` where that is
    no folder's name.
    """
    try:
        return part((folder / "latest").read_text(encoding="utf-8").strip())
    except (OSError, ValueError, UnsafeName) as error:
        raise CheckpointError(f"{folder / 'latest'}: names no folder of the checkpoint ({error}).") from None
