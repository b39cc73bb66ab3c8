"""A ZeRO-3 run of half a minute that something is done to, on a cluster of a test's own, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from head import Head
from support import checkpoint_tensors, events, losses, recorded_rows, tiny_job, wait_until, write_job

ROWS, STEPS, SAVE = 400, 240, 20
PATIENCE_S = 1500
"""A run of half a minute takes many where ten processes want two cores; one that hangs takes longer."""
SLOW = """
import time

from transformers import TrainerCallback


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.1)
"""


def job_of(folder: Path, name: str, workers: Any, **more: Any) -> dict[str, Any]:
    return tiny_job(
        folder,
        name,
        deepspeed={"zero_stage": 3},
        training={"max_steps": STEPS, "learning_rate": 1e-4},
        checkpoint={"save_steps": SAVE},
        trainer={"callbacks": ["slow_callback:Slow"]},
        workers={"num_workers": workers, "resources_per_worker": {"CPU": 1, "place": 1}, **more},
    )


def start(head: Head, folder: Path, job: dict[str, Any], *flags: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "raytrain_nlp.cli.main",
        "train",
        write_job(job, folder / f"{job['name']}.json"),
        "--json",
        *flags,
    ]
    return subprocess.Popen(
        command, env=head.env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(driver: subprocess.Popen, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    out, err = driver.communicate(timeout=timeout_s)
    assert driver.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def reach(driver: subprocess.Popen, run: Path, step: int, begun: int) -> None:
    """Wait until the run has been begun so many times and has made a step."""

    def there() -> bool:
        if driver.poll() is not None:
            raise AssertionError(driver.communicate())
        found = events(run) if (run / "events.jsonl").exists() else []
        starts = [number for number, event in enumerate(found) if event["kind"] in ("start", "resume")]
        return len(starts) >= begun and any(
            event["kind"] == "log" and event["step"] >= step for event in found[starts[begun - 1] :]
        )

    wait_until(there, PATIENCE_S, f"step {step} of start {begun}")


def begun(run: Path) -> list[tuple[int, int]]:
    return [(event["step"], event["world_size"]) for event in events(run) if event["kind"] in ("start", "resume")]


def batches(rows: Path) -> dict[int, list[int]]:
    found: dict[int, set[int]] = {}
    for entry in recorded_rows(rows):
        found.setdefault(entry["step"], set()).update(entry["rows"])
    return {step: sorted(found[step]) for step in sorted(found)}


def whole_run(head: Head, folder: Path, rows: Path, name: str, workers: int) -> tuple[Path, dict[int, list[int]]]:
    """The undisturbed run on the nodes there are, and its global batches."""
    run = folder / "runs" / name
    finish(start(head, folder, job_of(folder, name, workers)))
    seen = batches(rows)
    for file in rows.iterdir():
        file.unlink()
    return run, seen


def assert_same_end(run: Path, truth: Path) -> None:
    """Every tensor of the last checkpoint, and every loss."""
    ours, theirs = (checkpoint_tensors(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (run, truth))
    assert (
        ours.keys() == theirs.keys() and len(ours) > 10 and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )
    assert losses(run) == losses(truth)
