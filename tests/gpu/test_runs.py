"""Techniques on a GPU: each run is short, on a worker that stays."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch

ONE_GPU = {"num_workers": 1, "use_gpu": True, "resources_per_worker": {"CPU": 1}, "max_failures": 0}
KINDS: dict[str, dict[str, Any]] = {
    "zero0": {"deepspeed": {"zero_stage": 0}},
    "zero2": {"deepspeed": {"zero_stage": 2}},
    "zero3": {"deepspeed": {"zero_stage": 3}},
    "fp32": {"deepspeed": {"zero_stage": 3}, "training": {"bf16": False}},
    "fp16": {"deepspeed": {"zero_stage": 3}, "training": {"fp16": True}},
    "offload": {"deepspeed": {"zero_stage": 3, "offload_optimizer": "cpu"}},
    "offload-both": {"deepspeed": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}},
    "lora": {"deepspeed": {"zero_stage": 3}, "lora": {"r": 4, "target_modules": "all-linear"}},
}


def job_of(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    support.write_rows(folder / "train.jsonl", 128)
    training = {"max_steps": 8, **sections.pop("training", {})}
    return {
        **support.tiny_job(folder, name, training=training, checkpoint={"save_strategy": "no"}, **sections),
        "workers": ONE_GPU,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_with_finite_losses(kind: str, train_on_gpu: Callable[..., Any], tmp_path: Path) -> None:
    sections = {key: dict(value) for key, value in KINDS[kind].items()}
    result = train_on_gpu(job_of(tmp_path, kind, **sections))
    run = Path(result.run_dir)
    losses = support.losses(run)
    assert len(losses) == 8 and all(map(math.isfinite, losses)) and losses[-1] < losses[0] + 0.5
    assert next(event["peak_memory"] for event in support.events(run) if event["kind"] == "end")[0] > 10**8
    if kind.startswith("offload"):  # which Adam, is told
        assert any("Adam" in event["text"] for event in support.events(run) if event["kind"] == "notice")


@pytest.mark.parametrize("kind", ["zero0", "zero3", "fp16", "offload"])
def test_a_resumed_run_ends_bit_for_bit(kind: str, train_on_gpu: Callable[..., Any], tmp_path: Path) -> None:
    """From its checkpoint in the middle, as one that was killed after it would."""
    sections = {key: dict(value) for key, value in KINDS[kind].items()}
    training = {**sections.pop("training", {}), "full_determinism": True}
    job = {
        **job_of(tmp_path, "whole", training=training, **sections),
        "checkpoint": {"save_steps": 4, "save_total_limit": 3},
    }
    run = Path(train_on_gpu(job).run_dir)
    whole = support.checkpoint_tensors(run / "checkpoints" / "checkpoint-8")
    losses = support.losses(run)
    shutil.rmtree(run / "checkpoints" / "checkpoint-8")
    shutil.rmtree(run / "model")
    record = json.loads((run / "run.json").read_text())
    del record["result"]
    (run / "run.json").write_text(json.dumps({**record, "status": "killed"}))
    train_on_gpu(job, resume=True)
    resumed = support.checkpoint_tensors(run / "checkpoints" / "checkpoint-8")
    assert whole.keys() == resumed.keys()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert support.losses(run) == losses
