"""State files hold exactly what was saved and run no code; a checkpoint is committed or does not exist."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.errors import CheckpointError
from raytrain_nlp.storage import storage_of


def test_a_state_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tree = {
        "optimizer": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 5)}, 1: {"exp_avg": torch.zeros(0)}},
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "fused": None, "flag": True, "params": [0, 1]}],
        "shapes": OrderedDict(a=torch.Size([2, 3]), b=torch.Size([])),
        "dtype": torch.bfloat16,
        "half": torch.randn(3).bfloat16(),
        "twice": [shared, shared],
        "view": shared[2:4],
        "turned": torch.randn(3, 4).t(),
        "numpy": np.random.default_rng(0).integers(0, 2**32, 8, dtype=np.uint32),
        "text": "ö",
    }
    save_state(tmp_path / "x.state", tree)
    found = load_state(tmp_path / "x.state")
    assert found["optimizer"][0]["step"] == 3 and torch.equal(
        found["optimizer"][0]["exp_avg"], tree["optimizer"][0]["exp_avg"]
    )
    assert found["optimizer"][1]["exp_avg"].shape == (0,)
    assert found["groups"] == tree["groups"] and isinstance(found["groups"][0]["betas"], tuple)
    assert (
        found["shapes"] == tree["shapes"]
        and isinstance(found["shapes"], OrderedDict)
        and isinstance(found["shapes"]["a"], torch.Size)
    )
    assert found["dtype"] is torch.bfloat16 and torch.equal(found["half"], tree["half"])
    assert (
        torch.equal(found["twice"][1], shared)
        and torch.equal(found["view"], shared[2:4])
        and torch.equal(found["turned"], tree["turned"])
    )
    assert np.array_equal(found["numpy"], tree["numpy"]) and found["numpy"].dtype == np.uint32 and found["text"] == "ö"


def test_rng_states_come_back_exactly(tmp_path: Path) -> None:
    save_state(
        tmp_path / "rng", {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    )
    expected = (random.random(), np.random.rand(), torch.rand(1))
    found = load_state(tmp_path / "rng")
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["torch"])
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "canary"),)

    (tmp_path / "x").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": Evil()}, tmp_path / "y")
    for name in "xy":
        with pytest.raises(CheckpointError):
            load_state(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def make(root: Path, step: int, files: int = 3) -> store.Checkpoint:
    staging = store.staging_dir(root, step)
    (staging / "sub").mkdir(parents=True)
    paths = [staging / "sub" / f"f{i}" for i in range(files)]
    for path in paths:
        path.write_bytes(os.urandom(1000))
    return store.commit(root, staging, store.Manifest(step, 2, 3, "data", {}, store.describe_files(staging, paths)))


def test_the_newest_good_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 100):
        make(tmp_path, step)
    notes: list[str] = []
    assert store.find_checkpoint(tmp_path, note=notes.append).manifest.step == 100 and not notes
    (tmp_path / "checkpoint-100" / "sub" / "f1").unlink()
    content = bytearray((tmp_path / "checkpoint-20" / "sub" / "f0").read_bytes())
    content[500] ^= 4
    (tmp_path / "checkpoint-20" / "sub" / "f0").write_bytes(content)
    (tmp_path / "checkpoint-15" / "sub" / "f2").write_bytes(b"short")
    (tmp_path / "checkpoint-10" / "manifest.json").write_text("{")
    assert store.find_checkpoint(tmp_path, note=notes.append).manifest.step == 5
    assert [note.split(" ")[0] for note in notes] == [
        "checkpoint-100",
        "checkpoint-20",
        "checkpoint-15",
        "checkpoint-10",
    ]
    assert "missing" in notes[0] and "does not match its hash" in notes[1] and "5 bytes instead of 1000" in notes[2]


def test_no_good_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert store.find_checkpoint(tmp_path) is None and store.find_checkpoint(tmp_path / "absent") is None
    (make(tmp_path, 5).path / "sub" / "f0").unlink()
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is intact"):
        store.find_checkpoint(tmp_path)


def test_a_symlink_in_a_checkpoint_is_damage(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 5)
    target = checkpoint.path / "sub" / "f0"
    outside = tmp_path / "outside"
    outside.write_bytes(target.read_bytes())
    target.unlink()
    target.symlink_to(outside)
    assert store.damage(checkpoint) == "sub/f0 is missing"


def test_staging_is_no_checkpoint_and_leftovers_go(tmp_path: Path) -> None:
    make(tmp_path, 5)
    staging = store.staging_dir(tmp_path, 10)
    staging.mkdir()
    (staging / "manifest.json").write_text("{}")
    assert [found.manifest.step for found in store.list_checkpoints(tmp_path)] == [5]
    store.clean_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (make(tmp_path, 5).path / "sub" / "f0").unlink()
    make(tmp_path, 5)
    assert store.find_checkpoint(tmp_path).manifest.step == 5


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        make(tmp_path, step)
    store.apply_retention(storage_of(tmp_path), tmp_path, None, set())
    assert len(store.list_checkpoints(tmp_path)) == 4
    store.apply_retention(storage_of(tmp_path), tmp_path, 1, {10})
    assert [found.manifest.step for found in store.list_checkpoints(tmp_path)] == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20"]
