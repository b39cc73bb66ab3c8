"""A run whose number of workers changes twice: the same global batches, and every value of the optimizer where it
belongs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import events, losses, recorded_rows, tiny_job, write_rows

import raytrain_nlp
from raytrain_nlp.launch import elastic

STEPS, ROWS = 14, 100
KINDS = [(3, "full"), (3, "lora"), (2, "full"), (1, "full"), (0, "full")]
LORA = {"r": 4, "target_modules": "all-linear"}
CODE = """
import json
import os
import time

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file
from transformers import TrainerCallback

FOLDER, KEYS = {folder!r}, ("exp_avg", "exp_avg_sq")


class Resize(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            write("begin", state, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        write("end", state, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (4, 8) and dist.get_rank() == 0:
            reason = f"a test says so at {{state.global_step}}"
            with open(f"{{FOLDER}}/runs/elastic/move.json", "w") as file:
                json.dump({{"reason": reason}}, file)
            while reason not in open(f"{{FOLDER}}/runs/elastic/events.jsonl").read():
                time.sleep(0.05)


def write(when, state, model, optimizer, **kwargs):
    values = {{}}
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        values = groups(optimizer)
    else:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                for key, value in whole(parameter, optimizer).items():
                    values[f"{{name}}/{{key}}"] = value.detach().clone().reshape(-1)
    counted = getattr(optimizer, "optimizer", optimizer).state.values()
    values["steps"] = torch.tensor([float(state["step"]) for state in counted])
    if dist.get_rank() == 0:
        save_file(values, f"{{FOLDER}}/{{when}}-{{state.global_step}}-{{dist.get_world_size()}}.safetensors")


def groups(optimizer):
    # stages 1 and 2: the parts of all ranks end to end, without the padding
    found = {{}}
    for index, (part, parameters) in enumerate(zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups)):
        own = {{"value": part, **{{key: optimizer.optimizer.state[part][key] for key in KEYS}}}}
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, {{key: value.detach().clone() for key, value in own.items()}})
        size = sum(parameter.numel() for parameter in parameters)
        found |= {{f"{{index}}/{{key}}": torch.cat([part[key] for part in parts])[:size].clone() for key in own}}
    return found


def whole(parameter, optimizer):
    if hasattr(parameter, "ds_id"):
        return {{"value": safe_get_full_fp32_param(parameter), **{{key: safe_get_full_optimizer_state(parameter, key) for key in KEYS}}}}
    return {{"value": parameter, **{{key: optimizer.state[parameter][key] for key in KEYS}}}}
"""  # noqa: E501


def job_of(folder: Path, name: str, stage: int, workers: Any) -> dict[str, Any]:
    return tiny_job(
        folder, name, deepspeed={"zero_stage": stage}, training={"max_steps": STEPS}, workers={"num_workers": workers},
        data={"validation": str(folder / "validation.jsonl")},
    ) | ({"lora": LORA} if folder.name == "lora" else {})  # fmt: skip


def batches(folder: Path) -> dict[int, list[int]]:
    """Rows of each global batch, whichever rank had them; of a repeated step once."""
    found: dict[int, set[int]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(entry["rows"])
    return {step: sorted(rows) for step, rows in sorted(found.items())}


@pytest.mark.parametrize(("stage", "kind"), KINDS)
def test_two_workers_then_one_then_two(
    shared_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, kind: str
) -> None:
    folder = tmp_path / kind
    for part in ("rows", "truth"):
        (folder / part).mkdir(parents=True)
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "validation.jsonl", 21, seed=1)
    shared_ray(record_rows=str(folder / "truth"))
    truth = raytrain_nlp.train(job_of(folder, "undisturbed", stage, 2))

    (folder / "resize_callback.py").write_text(CODE.format(folder=str(folder)))
    monkeypatch.chdir(folder)
    run = folder / "runs" / "elastic"

    def sizes(job: Any, nodes: Any) -> int:
        begun = (
            [event for event in events(run) if event["kind"] in ("start", "resume")]
            if (run / "events.jsonl").exists()
            else []
        )
        return (2, 1, 2)[len(begun)]

    monkeypatch.setattr(elastic, "_fitting", sizes)
    shared_ray(record_rows=str(folder / "rows"))
    result = raytrain_nlp.train(
        {**job_of(folder, "elastic", stage, [1, 2]), "trainer": {"callbacks": ["resize_callback:Resize"]}}
    )

    begun = [(event["step"], event["world_size"]) for event in events(run) if event["kind"] in ("start", "resume")]
    assert begun == [(0, 2), (5, 1), (9, 2)] and result.global_step == STEPS
    for step, before, after in ((5, 2, 1), (9, 1, 2)):
        saved, loaded = (
            load_file(folder / f"{when}-{step}-{count}.safetensors")
            for when, count in (("end", before), ("begin", after))
        )
        assert (
            saved.keys() == loaded.keys()
            and sum(value.numel() for key, value in saved.items() if key.endswith("exp_avg_sq")) > 500
        )
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    for step, count in ((5, 2), (9, 1), (STEPS, 2)):  # what Adam corrects its bias with
        steps = load_file(folder / f"end-{step}-{count}.safetensors")["steps"]
        assert steps.tolist() == [step] * len(steps)
    assert batches(folder / "rows") == batches(folder / "truth") and len(batches(folder / "rows")) == STEPS
    ours, theirs = losses(run), losses(Path(truth.run_dir))
    assert len(ours) == STEPS and ours == pytest.approx(theirs, abs=1e-5)
    assert result.metrics["eval_loss"] == pytest.approx(truth.metrics["eval_loss"], abs=1e-5)
    assert json.loads((run / "checkpoints" / f"checkpoint-{STEPS}" / "manifest.json").read_text())["world_size"] == 2
