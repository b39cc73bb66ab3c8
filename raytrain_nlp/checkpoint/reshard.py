"""Loads a ZeRO checkpoint on another number of ranks: each rank reads its new shard from the shards of the old ranks.

    stage 1, 2   the parameters of a group end to end, padded, cut into one part for each rank
    stage 3      each parameter padded and cut into one part for each rank; the parts of a sub-group end to end

Nothing is converted on disk: inside `fitted`, DeepSpeed's reads of a rank's files return the new shards. The layouts
are those of DeepSpeed's `zero/stage_1_and_2.py` and `zero/stage3.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raytrain_nlp.checkpoint.consolidate import Flat, model_file, optimizer_file
from raytrain_nlp.checkpoint.state import StoredTensor, load_state, open_state, read_tree
from raytrain_nlp.checkpoint.store import list_checkpoints
from raytrain_nlp.compat.deepspeed import checkpoint_parts
from raytrain_nlp.errors import CheckpointError

Tensors = Callable[[dict[str, Any]], list[StoredTensor]]
"""From a rank's part of the optimizer, one tensor for each of its groups."""


@contextlib.contextmanager
def fitted(engine: Any, folder: Path) -> Iterator[None]:
    """While inside, `engine.load_checkpoint(folder)` loads this rank's shard, whatever number of ranks wrote the
    checkpoint.

    Raises:
        CheckpointError: the optimizer keeps tensors that do not have one value for each weight, so that they cannot be
            divided among another number of ranks.
    """
    written = next((found.manifest for found in list_checkpoints(folder.parent) if found.path == folder), None)
    if written is None or written.world_size == dist.get_world_size() or not engine.zero_optimization_stage():
        yield
        return
    part = (_PartOfParameters if engine.zero_optimization_stage() == 3 else _PartOfGroups)(
        engine, folder, written.world_size
    )
    model, optimizer = str(part.model_file), str(optimizer_file(folder, 0))  # DeepSpeed looks whether they exist
    found = {model: part.model, optimizer: part.optimizer}
    with checkpoint_parts(engine, model, optimizer, dist.get_world_size(), lambda path: found[path]()):
        yield


class _Part:
    """This rank's shard of a checkpoint that `ranks` ranks wrote."""

    weights_key: str
    optimizer_key: str

    def __init__(self, engine: Any, folder: Path, ranks: int):
        self.engine, self.folder, self.ranks = engine, folder, ranks
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    @property
    def model_file(self) -> Path:
        return model_file(self.folder)

    def model(self) -> dict[str, Any]:
        """The state that is not sharded: buffers, counters; under stages 1 and 2 also the weights."""
        return {**load_state(self.model_file), "dp_world_size": self.world}

    def optimizer(self) -> dict[str, Any]:
        parts = [open_state(optimizer_file(self.folder, rank), "optimizer_state_dict") for rank in range(self.ranks)]
        first = parts[0]
        optimizer = first[self.optimizer_key]
        weights = self.cut(parts, lambda part: part[self.weights_key])
        states: list[dict[str, Any]] = [{} for _ in weights]
        for key, value in next(iter(optimizer["state"].values()), {}).items():
            for state, mine in zip(states, self._state_of(parts, key, value, len(weights)), strict=True):
                state[key] = mine
        whole = {
            key: read_tree(value) for key, value in first.items() if key not in (self.weights_key, self.optimizer_key)
        }
        groups = [
            {**group, "params": indices}
            for group, indices in zip(optimizer["param_groups"], self.indices(), strict=True)
        ]
        by_group = dict(enumerate(states)) if optimizer["state"] else {}
        return {
            "optimizer_state_dict": {
                **whole,
                self.weights_key: weights,
                self.optimizer_key: {"state": by_group, "param_groups": groups},
            }
        }

    def _state_of(self, parts: list[dict[str, Any]], key: str, value: Any, count: int) -> list[Any]:
        """The optimizer's state `key` for each group: this rank's shard of a state with one value for each weight, or a
        copy of one that all weights share, such as the step.
        """
        if not isinstance(value, StoredTensor) or value.shape == ():
            same = read_tree(value)
            return [
                same.clone() if isinstance(same, torch.Tensor) else same for _ in range(count)
            ]  # the optimizer counts in place
        states = parts[0][self.optimizer_key]["state"]
        weights = parts[0][self.weights_key]
        if any(
            len(state[key].shape) != 1 or state[key].size < stored.size
            for state, stored in zip(states.values(), weights, strict=True)
        ):
            raise CheckpointError(
                f"'{key}' of this optimizer cannot be shared out anew. Continue with {self.ranks} workers."
            )
        return self.cut(parts, lambda part: [state[key] for state in part[self.optimizer_key]["state"].values()])

    def cut(self, parts: list[dict[str, Any]], tensors: Tensors) -> list[torch.Tensor]:
        """This rank's shard of each of its groups, shape [values]."""
        raise NotImplementedError

    def indices(self) -> list[list[int]]:
        """For each parameter group of the optimizer the indices of the groups of `cut` in it."""
        raise NotImplementedError


class _PartOfGroups(_Part):
    """Stages 1 and 2."""

    weights_key, optimizer_key = "single_partition_of_fp32_groups", "base_optimizer_state"

    def cut(self, parts: list[dict[str, Any]], tensors: Tensors) -> list[torch.Tensor]:
        optimizer = self.engine.optimizer
        made = []
        for index, (mine, params) in enumerate(
            zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True)
        ):
            size, total = mine.numel(), sum(param.numel() for param in params)
            start, stop = min(self.rank * size, total), min((self.rank + 1) * size, total)
            made.append(_padded(Flat([tensors(part)[index] for part in parts]).read(start, stop), size))
        return made

    def indices(self) -> list[list[int]]:
        return [[index] for index in range(len(self.engine.optimizer.bit16_groups))]


class _PartOfParameters(_Part):
    """Stage 3."""

    weights_key, optimizer_key = "fp32_flat_groups", "optimizer_state_dict"

    @property
    def model_file(self) -> Path:
        return model_file(self.folder, 0)

    def model(self) -> dict[str, Any]:
        state = {**load_state(self.model_file), "dp_world_size": self.world}
        if state.get("frozen_param_fragments"):
            ranks = [open_state(model_file(self.folder, rank), "frozen_param_fragments") for rank in range(self.ranks)]
            shapes = state["frozen_param_shapes"]
            state["frozen_param_fragments"] = {
                name: self._own([Flat([rank[name]]) for rank in ranks], 0, math.prod(shapes[name])) for name in ranks[0]
            }  # fmt: skip
        return state

    def cut(self, parts: list[dict[str, Any]], tensors: Tensors) -> list[torch.Tensor]:
        starts, start = {}, 0
        for name, shape in (pair for group in open_state(self.model_file, "param_shapes") for pair in group.items()):
            starts[name] = start, math.prod(shape)
            start += math.ceil(math.prod(shape) / self.ranks)
        ranks = [Flat(tensors(part)) for part in parts]
        names = self.engine.param_names
        return [
            torch.cat([self._own(ranks, *starts[names[param]]) for param in group])
            for group in self.engine.optimizer.fp16_groups
        ]

    def _own(self, ranks: list[Flat], start: int, size: int) -> torch.Tensor:
        """This rank's shard of a parameter of `size` values; its part in each old rank's shard begins at `start`."""
        theirs, mine = math.ceil(size / self.ranks), math.ceil(size / self.world)
        position, stop = min(self.rank * mine, size), min((self.rank + 1) * mine, size)
        pieces = []
        while position < stop:
            rank, offset = divmod(position, theirs)
            count = min(theirs - offset, stop - position)
            pieces.append(ranks[rank].read(start + offset, start + offset + count))
            position += count
        return _padded(torch.cat(pieces) if pieces else torch.zeros(0), mine)

    def indices(self) -> list[list[int]]:
        optimizer = self.engine.optimizer
        groups = [optimizer.sub_group_to_group_id[index] for index in range(len(optimizer.fp16_groups))]
        return [
            [index for index, group in enumerate(groups) if group == wanted]
            for wanted in range(len(optimizer.optimizer.param_groups))
        ]


def _padded(values: torch.Tensor, size: int) -> torch.Tensor:
    """With zeros at its end, as DeepSpeed pads."""
    return torch.nn.functional.pad(values, (0, size - values.numel()))
