"""The checkpointer on a small model: what it saves it loads, into this model and no other; manifests and DeepSpeed's
files are read as if anybody had written them.
"""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.checkpointer import Checkpointer, apply_hyperparameters
from raytrain_nlp.checkpoint.commit import Commits
from raytrain_nlp.checkpoint.manifest import (
    Checkpoint,
    Damaged,
    Manifest,
    checkpoint_name,
    parse_manifest,
    read_checkpoint,
)
from raytrain_nlp.compat.deepspeed import import_deepspeed
from raytrain_nlp.errors import CheckpointError


class Trained(SimpleNamespace):
    """What the checkpointer reads of a `Trainer` on one process."""

    def __init__(self, width: int = 3, rate: float = 0.1):
        model = torch.nn.Linear(width, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
        super().__init__(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            is_deepspeed_enabled=False,
            state=TrainerState(),
            control=TrainerControl(),
            args=SimpleNamespace(world_size=1, process_index=0),
            callback_handler=SimpleNamespace(callbacks=[]),
            accelerator=SimpleNamespace(scaler=None, unwrap_model=lambda model: model),
            _feed=SimpleNamespace(fresh_groups=[{"lr": rate, "weight_decay": 0.5}]),
        )

    def is_world_process_zero(self) -> bool:
        return True

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.rand(4, self.model.in_features)).square().sum().backward()
        self.optimizer.step()
        self.lr_scheduler.step()
        self.state.global_step += 1


def checkpointer(root: Path, limit: int | None = None, **more: Any) -> tuple[Checkpointer, list[int]]:
    committed: list[int] = []
    commits = Commits(root, 0, 1, limit, lambda step, seconds: committed.append(step))
    options = {"keep_best": False, "adapter_only": False, **more}
    return Checkpointer(commits, 0, "fingerprint", {"torch": "x"}, **options), committed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_did_not_stop(root: Path) -> None:
    """Weights, moments, schedule and random numbers: three further steps end at the same bits."""
    trainer, (saver, committed) = Trained(), checkpointer(root)
    for _ in range(4):
        trainer.step()
    saver.save(trainer)
    draws = random.random(), np.random.rand(), torch.rand(1)
    saver.load_rng(trainer, str(root / "checkpoint-4"))
    for _ in range(3):
        trainer.step()
    assert committed == [4]

    other = Trained()
    saver.load_model(other, str(root / "checkpoint-4"))
    saver.load_optimizer(other, str(root / "checkpoint-4"))
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    saver.load_rng(other, str(root / "checkpoint-4"))
    assert (random.random(), np.random.rand(), torch.rand(1)) == draws
    saver.load_rng(other, str(root / "checkpoint-4"))
    for _ in range(3):
        other.step()
    assert torch.equal(other.model.weight, trainer.model.weight) and torch.equal(other.model.bias, trainer.model.bias)
    assert other.lr_scheduler.get_last_lr() == trainer.lr_scheduler.get_last_lr()
    manifest = json.loads((root / "checkpoint-4" / "manifest.json").read_text())
    files = {path.name for path in (root / "checkpoint-4").iterdir()} - {"manifest.json"}
    assert (
        {entry["path"] for entry in manifest["files"]}
        == files
        == {"model.state", "optimizer.state", "scheduler.state", "trainer_state.json", "rng-0.state"}
    )


def test_the_best_one_stays_beyond_the_limit_and_is_the_one_loaded_at_the_end(root: Path) -> None:
    trainer, (saver, _) = Trained(), checkpointer(root, limit=1, keep_best=True)
    for step in (1, 2, 3):
        trainer.step()
        if step == 1:
            trainer.state.best_global_step, best = 1, copy.deepcopy(trainer.model.state_dict())
        saver.save(trainer)
    assert {path.name for path in root.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    assert trainer.state.best_model_checkpoint == str(root / "checkpoint-1") == saver.path_of(1)
    assert saver.path_of(2) is None and saver.path_of(None) is None
    assert json.loads((root / "checkpoint-3" / "trainer_state.json").read_text())["best_model_checkpoint"] == str(
        root / "checkpoint-1"
    )
    saver.load_best(trainer, trainer.state.best_model_checkpoint)
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


def test_a_best_one_that_is_damaged_or_gone_is_told_and_not_loaded(root: Path) -> None:
    trainer, (saver, _) = Trained(), checkpointer(root)
    trainer.step()
    saver.save(trainer)
    before, file = copy.deepcopy(trainer.model.state_dict()), root / "checkpoint-1" / "model.state"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="the best checkpoint cannot be loaded: .*checkpoint-1: .*model.state"):
        saver.load_best(trainer, str(root / "checkpoint-1"))
    with pytest.raises(CheckpointError, match="it is missing"):
        saver.load_best(trainer, str(root / "checkpoint-7"))
    with pytest.raises(CheckpointError, match="it is missing"):
        saver.load_best(trainer, None)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_an_adapter_keeps_what_is_trained_and_refuses_what_is_of_another(root: Path) -> None:
    trainer, (saver, _) = Trained(), checkpointer(root, adapter_only=True)
    trainer.model.bias.requires_grad_(False)
    trainer.step()
    saver.save(trainer)
    other = Trained()
    other.model.bias.requires_grad_(False)
    bias = other.model.bias.clone()
    saver.load_model(other, str(root / "checkpoint-1"))
    assert torch.equal(other.model.weight, trainer.model.weight) and torch.equal(other.model.bias, bias)
    stranger = Trained()
    stranger.model = torch.nn.ModuleDict({"layer": torch.nn.Linear(3, 2)})
    with pytest.raises(
        CheckpointError, match="is of another model: bias|is of another model: weight|is of another model: layer"
    ):
        saver.load_model(stranger, str(root / "checkpoint-1"))


def test_a_trial_that_inherits_has_its_own_rate_and_the_moments_of_the_other(root: Path) -> None:
    """Population based training would change nothing: the optimizer's file brings the rate of the run it is from."""
    trainer, (saver, _) = Trained(rate=0.1), checkpointer(root, renew_hyperparameters=True)
    for _ in range(5):
        trainer.step()
    saver.save(trainer)
    other = Trained(rate=0.004)
    saver.load_optimizer(other, str(root / "checkpoint-5"))
    group = other.optimizer.param_groups[0]
    assert (
        group["lr"] == pytest.approx(0.004 * 0.5)
        and group["weight_decay"] == 0.5
        and other.lr_scheduler.get_last_lr() == [pytest.approx(0.002)]
    )
    moments = next(iter(trainer.optimizer.state.values()))["exp_avg"]
    assert torch.equal(next(iter(other.optimizer.state.values()))["exp_avg"], moments)
    other.optimizer.step()
    other.lr_scheduler.step()
    assert group["lr"] == pytest.approx(0.004 * 0.4), "and the schedule goes on from its step"
    apply_hyperparameters(other)
    assert group["lr"] == pytest.approx(0.004 * 0.4)


# DeepSpeed's files


def test_the_engine_of_deepspeed_reads_no_pickle_and_knows_what_it_wrote(tmp_path: Path) -> None:
    import_deepspeed()
    from raytrain_nlp.checkpoint.engine import SafeCheckpointEngine

    safe = SafeCheckpointEngine()
    safe.save({"module": {"w": torch.arange(3.0)}, "step": 7}, str(tmp_path / "a.pt"))
    safe.save({"module": None}, str(tmp_path / "b.pt"))
    assert safe.written == [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    found = safe.load(str(tmp_path / "a.pt"))
    assert found["step"] == 7 and torch.equal(found["module"]["w"], torch.arange(3.0)) and safe.commit(None)
    safe.create(None)
    assert safe.written == []
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"module": 1}))
    torch.save({"module": 1}, tmp_path / "d.pt")
    for name in "cd":
        with pytest.raises(CheckpointError):
            safe.load(str(tmp_path / f"{name}.pt"))


def test_an_engine_loads_what_latest_names_in_its_folder_alone(tmp_path: Path) -> None:
    """DeepSpeed joins whatever that file says to the folder's path."""
    import_deepspeed()
    from raytrain_nlp.checkpoint.engine import apply_safe_checkpoints

    loaded: list[Any] = []

    class Engine(SimpleNamespace):
        def load_checkpoint(self, folder: str, *args: Any, **kwargs: Any) -> str:
            loaded.append((folder, args, kwargs))
            return "done"

    engine = Engine(dp_world_size=1, _copy_recovery_script=lambda path: (Path(path) / "script.py").write_text("x"))
    safe = apply_safe_checkpoints(engine)
    assert engine.checkpoint_engine is safe
    engine._copy_recovery_script(str(tmp_path))
    assert not list(tmp_path.iterdir())
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError):
        engine.load_checkpoint(str(tmp_path))
    assert not loaded


# manifests

GOOD = {
    "step": 5, "world_size": 2, "zero_stage": 1, "data_fingerprint": "d", "versions": {"torch": "2"}, "format": 1,
    "files": [{"path": "sub/a", "size": 3, "sha256": "0" * 64}],
}  # fmt: skip


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / checkpoint_name(5)
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(GOOD))
    found = read_checkpoint(folder)
    assert isinstance(found, Checkpoint) and found.manifest == Manifest(
        5, 2, 1, "d", {"torch": "2"}, [store.FileEntry("sub/a", 3, "0" * 64)]
    )
    folder.rename(tmp_path / "checkpoint-6")
    moved = read_checkpoint(tmp_path / "checkpoint-6")
    assert isinstance(moved, Damaged) and moved.why == "manifest.json is that of step 5"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "its format is 2, this version reads 1"),
        ({"format": True}, "its format is True"),
        ({"step": -1}, "step is no number from 0 on"),
        ({"step": "5"}, "step is no number"),
        ({"world_size": 0}, "world_size is no number from 1 on"),
        ({"zero_stage": True}, "zero_stage is no number"),
        ({"data_fingerprint": None}, "data_fingerprint is null, no text"),
        ({"versions": {"torch": 2}}, "versions are no texts by name"),
        ({"files": {}}, "files are an object, no list"),
        ({"files": [{"path": "../x", "size": 3, "sha256": "0" * 64}]}, "the path of a file"),
        ({"files": [{"path": "/etc/passwd", "size": 3, "sha256": "0" * 64}]}, "the path of a file"),
        ({"files": [{"path": "a", "size": -3, "sha256": "0" * 64}]}, "the size of a is no number"),
        ({"files": [{"path": "a", "size": 3, "sha256": "0" * 63 + "G"}]}, "the hash of a is none"),
        ({"files": [{"path": "a", "size": 3}]}, "something else than path, size and sha256"),
        ({"more": 1}, "it has what no manifest has: 'more'"),
        ({"step": ...}, "it has no step"),
    ],
)
def test_a_manifest_that_says_what_none_may_say_is_refused(change: dict[str, Any], why: str) -> None:
    values = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=why):
        parse_manifest(values)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "is empty"), (b"{", "is no JSON"), (b"[]", "it holds a list, no object"), (b"7", "it holds a number"), (b"\xff\xfe", "is no manifest|no JSON"),  # noqa: E501
     (b"[" * 100_000, "nested too deep|no JSON"), (None, "is missing")],
)  # fmt: skip
def test_a_manifest_that_is_none_is_damage_and_no_traceback(tmp_path: Path, content: bytes | None, why: str) -> None:
    folder = tmp_path / checkpoint_name(1)
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    found = read_checkpoint(folder)
    assert isinstance(found, Damaged)
    assert re.search(why, found.why) and len(found.why) < 300
