"""A checkpoint of some ranks on other ranks, against parts cut by hand from whole values."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raytrain_nlp.checkpoint import reshard
from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.errors import CheckpointError

SHAPES = {"embed": (7, 3), "bias": (5,), "one": (1,), "head": (2, 4)}
GROUPS = [["embed", "bias"], ["one", "head"]]
"""Parameters with and without weight decay."""


def whole(key: str, name: str) -> torch.Tensor:
    size = math.prod(SHAPES[name])
    return (
        torch.arange(size, dtype=torch.float32)
        + 100 * list(SHAPES).index(name)
        + {"value": 0.0, "exp_avg": 0.25, "exp_avg_sq": 0.5}[key]
    )


def part_of_parameters(key: str, group: list[str], rank: int, ranks: int) -> torch.Tensor:
    """Stage 3."""
    parts = []
    for name in group:
        values = whole(key, name)
        size = math.ceil(len(values) / ranks)
        parts.append(torch.cat([values, torch.zeros(size * ranks - len(values))])[rank * size : (rank + 1) * size])
    return torch.cat(parts)


def part_of_group(key: str, group: list[str], rank: int, ranks: int) -> torch.Tensor:
    """Stages 1 and 2: DeepSpeed pads to twice the number of ranks."""
    values = torch.cat([whole(key, name) for name in group])
    size = math.ceil(len(values) / (2 * ranks)) * 2
    return torch.cat([values, torch.zeros(size * ranks - len(values))])[rank * size : (rank + 1) * size]


def write(folder: Path, stage: int, ranks: int, moments: bool = True) -> None:
    """What DeepSpeed writes, as far as it matters."""
    cut = part_of_parameters if stage == 3 else part_of_group
    (folder / "step").mkdir(parents=True)
    (folder / "latest").write_text("step")
    shapes = [{name: torch.Size(SHAPES[name]) for name in group} for group in GROUPS]
    for rank in range(ranks):
        state = {
            index: {
                "step": torch.tensor(4.0),
                **{key: cut(key, group, rank, ranks) for key in ("exp_avg", "exp_avg_sq")},
            }
            if moments
            else {"row": torch.ones(2)}
            for index, group in enumerate(GROUPS)
        }
        groups = [{"lr": 0.1 * (index + 1), "params": [index]} for index in range(len(GROUPS))]
        weights = [cut("value", group, rank, ranks) for group in GROUPS]
        if stage == 3:
            part = {
                "fp32_flat_groups": weights,
                "optimizer_state_dict": {"state": state, "param_groups": groups},
                "overflow": False,
            }
            frozen = torch.cat([torch.arange(9.0), torch.zeros(8)])
            size = math.ceil(9 / ranks)
            model = {
                "dp_world_size": ranks,
                "param_shapes": shapes,
                "global_steps": 4,
                "frozen_param_shapes": {"frozen": torch.Size((3, 3))},
                "frozen_param_fragments": {"frozen": frozen[rank * size : (rank + 1) * size]},
            }
            save_state(folder / "step" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", model)
        else:
            total = [sum(math.prod(SHAPES[name]) for name in group) for group in GROUPS]
            weights = [
                values[: max(size - rank * len(values), 0)] for values, size in zip(weights, total, strict=True)
            ]  # written without padding
            part = {
                "single_partition_of_fp32_groups": weights,
                "base_optimizer_state": {"state": state, "param_groups": groups},
                "overflow": False,
            }
            save_state(folder / "step" / "mp_rank_00_model_states.pt", {"dp_world_size": ranks, "module": {}})
        save_state(folder / "step" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {"optimizer_state_dict": part})


def engine_of(stage: int, rank: int, ranks: int) -> Any:
    """As much of a DeepSpeed engine on `ranks` ranks as tells its layout."""
    named = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    groups = [[named[name] for name in group] for group in GROUPS]
    if stage == 3:
        optimizer = SimpleNamespace(
            fp16_groups=groups, sub_group_to_group_id={0: 0, 1: 1}, optimizer=SimpleNamespace(param_groups=[{}, {}])
        )
    else:
        optimizer = SimpleNamespace(
            bit16_groups=groups,
            single_partition_of_fp32_groups=[part_of_group("value", group, rank, ranks) for group in GROUPS],
        )
    return SimpleNamespace(optimizer=optimizer, param_names={parameter: name for name, parameter in named.items()})


def parts(folder: Path, stage: int, before: int, after: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made = []
    for rank in range(after):
        monkeypatch.setattr(
            reshard, "dist", SimpleNamespace(get_rank=lambda rank=rank: rank, get_world_size=lambda: after)
        )
        kind = reshard._PartOfParameters if stage == 3 else reshard._PartOfGroups
        made.append(kind(engine_of(stage, rank, after), folder, before))
    return made


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2), (4, 3), (2, 16)])
def test_each_rank_gets_what_it_would_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, before: int, after: int
) -> None:
    write(tmp_path, stage, before)
    cut = part_of_parameters if stage == 3 else part_of_group
    weights_key, optimizer_key = (
        ("fp32_flat_groups", "optimizer_state_dict")
        if stage == 3
        else ("single_partition_of_fp32_groups", "base_optimizer_state")
    )
    for rank, part in enumerate(parts(tmp_path, stage, before, after, monkeypatch)):
        found = part.optimizer()["optimizer_state_dict"]
        assert found["overflow"] is False
        for index, group in enumerate(GROUPS):
            assert torch.equal(found[weights_key][index], cut("value", group, rank, after))
            state = found[optimizer_key]["state"][index]
            assert state["step"] == 4 and all(
                torch.equal(state[key], cut(key, group, rank, after)) for key in ("exp_avg", "exp_avg_sq")
            )
        for state in found[optimizer_key]["state"].values():
            state["step"] += 1  # in place, as Adam counts: each group for itself
        assert [float(state["step"]) for state in found[optimizer_key]["state"].values()] == [5, 5]
        assert [(group["lr"], group["params"]) for group in found[optimizer_key]["param_groups"]] == [
            (0.1, [0]),
            (0.2, [1]),
        ]
        model = part.model()
        assert model["dp_world_size"] == after
        if stage == 3:
            size = math.ceil(9 / after)
            assert torch.equal(
                model["frozen_param_fragments"]["frozen"],
                torch.cat([torch.arange(9.0), torch.zeros(16)])[rank * size : (rank + 1) * size],
            )


def test_state_that_is_not_shared_out_value_by_value_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 3, 2, moments=False)
    with pytest.raises(
        CheckpointError, match="'row' of this optimizer cannot be shared out anew. Continue with 2 workers"
    ):
        parts(tmp_path, 3, 2, 1, monkeypatch)[0].optimizer()


def test_nothing_is_changed_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    parts(tmp_path, 3, 2, 1, monkeypatch)[0].optimizer()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert load_state(tmp_path / "step" / "zero_pp_rank_0_mp_rank_00_model_states.pt")["dp_world_size"] == 2
