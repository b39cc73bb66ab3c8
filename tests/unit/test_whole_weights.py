"""Shards of ZeRO-3 put together by hand-made partitions: any number of ranks, padding, sub-groups, tied parameters,
buffers; other stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_nlp.checkpoint.consolidate import load_weights
from raytrain_nlp.checkpoint.state import save_state
from raytrain_nlp.checkpoint.store import Checkpoint, Manifest
from raytrain_nlp.errors import CheckpointError

SHAPES = [{"a.weight": (5, 3), "a.bias": (7,)}, {"b.weight": (2, 2, 2), "c": (1,)}]


def whole() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for group in SHAPES for name, shape in group.items()}


def checkpoint(folder: Path, stage: int, world_size: int) -> Checkpoint:
    return Checkpoint(folder, Manifest(1, world_size, stage, "", {}, []))


def write_shards(
    folder: Path, weights: dict[str, torch.Tensor], world_size: int, cuts: list[int], spare: int = 0
) -> Checkpoint:
    """Each parameter filled up to a multiple of the ranks and cut into as many parts; a rank's parts end to end, cut
    into sub-groups.
    """
    (folder / "global_step1").mkdir()
    (folder / "latest").write_text("global_step1")
    parts: list[list[torch.Tensor]] = [[] for _ in range(world_size)]
    for tensor in weights.values():
        flat = tensor.reshape(-1)
        each = -(-len(flat) // world_size)
        filled = torch.cat([flat, torch.full((each * world_size - len(flat),), 99.0)])
        for rank in range(world_size):
            parts[rank].append(filled[rank * each : (rank + 1) * each])
    for rank in range(world_size):
        flat = torch.cat([*parts[rank], torch.zeros(spare)])
        bounds = [0, *[cut for cut in cuts if cut < len(flat)], len(flat)]
        groups = [flat[start:stop].clone() for start, stop in zip(bounds, bounds[1:])]
        names: dict[str, Any] = {
            "module": {"table": torch.arange(3)},
            "buffer_names": ["table", "not saved"],
            "frozen_param_shapes": None,
        }
        shapes = [{name: torch.Size(shape) for name, shape in group.items()} for group in SHAPES]
        model = {**names, "param_shapes": shapes, "shared_params": {"tied": "b.weight"}}
        save_state(folder / "global_step1" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", model)
        optimizer = {"optimizer_state_dict": {"zero_stage": 3, "fp32_flat_groups": groups}}
        save_state(folder / "global_step1" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", optimizer)
    return checkpoint(folder, 3, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 9]], ids=str)
def test_partitions_of_any_size(tmp_path: Path, world_size: int, cuts: list[int]) -> None:
    weights = whole()
    found = load_weights(write_shards(tmp_path, weights, world_size, cuts))
    assert found.keys() == {*weights, "tied", "table"}
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert found["tied"] is found["b.weight"] and torch.equal(found["table"], torch.arange(3))


def test_floating_weights_change_their_type(tmp_path: Path) -> None:
    found = load_weights(write_shards(tmp_path, whole(), 2, []), torch.bfloat16)
    assert found["a.weight"].dtype == torch.bfloat16 and found["table"].dtype == torch.int64
    assert torch.equal(found["a.weight"], whole()["a.weight"].bfloat16())


def test_shards_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds 18 values on each rank, its parameters 17"):
        load_weights(write_shards(tmp_path, whole(), 2, [], spare=1))


@pytest.mark.parametrize(("stage", "name"), [(0, "model.state"), (2, "global_step1/mp_rank_00_model_states.pt")])
def test_stages_with_whole_weights(tmp_path: Path, stage: int, name: str) -> None:
    weights = {**whole(), "tied": whole()["b.weight"]}
    weights["tied"] = weights["b.weight"]
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "latest").write_text("global_step1")
    save_state(tmp_path / name, weights if stage == 0 else {"module": weights, "param_shapes": []})
    found = load_weights(checkpoint(tmp_path, stage, 2))
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    assert found["tied"] is found["b.weight"]
