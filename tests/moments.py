"""Ctrl-C at a moment of a run, once or twice, in a terminal of its own; and what is to be so afterwards."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from support import checkpoint_tensors, events, plain_job, run_cli, write_job, write_rows
from terminal import Terminal

STEPS, SAVE_STEPS = 40, 10


def stoppable_job(folder: Path, name: str) -> dict[str, Any]:
    """A run of 40 steps with dropout, a checkpoint every ten of them, and validation rows."""
    write_rows(folder / "train.jsonl", 320)
    write_rows(folder / "validation.jsonl", 24, seed=1)
    return plain_job(
        folder, name,
        data={"validation": str(folder / "validation.jsonl")},
        training={"per_device_train_batch_size": 4, "max_steps": STEPS, "logging_steps": 1, "eval_strategy": "no"},
        deepspeed={"zero_stage": 0}, checkpoint={"save_steps": SAVE_STEPS},
    )  # fmt: skip


def moment(terminal: Terminal, run: Path, name: str) -> bool:
    """Has the run come to the moment of this name?"""
    found = events(run) if (run / "events.jsonl").exists() else []
    phases = {event.get("phase") for event in found if event["kind"] == "phase"}
    return {
        "importing": lambda: time.monotonic() - terminal.started > 0.4,
        "preparing": lambda: "preparing tokens" in terminal.said,
        "Ray starting": lambda: any("gcs_server" in process.name() for process in terminal.descendants()),
        "workers starting": lambda: (run / "run.json").exists() and "worker" not in phases,
        "loading": lambda: "imports" in phases,
        "training": lambda: any(
            event["kind"] == "log" and event["step"] >= 3 and "loss" in event["metrics"] for event in found
        ),
        "saving": lambda: (run / "checkpoints").exists() and any((run / "checkpoints").iterdir()),
        "exporting": lambda: any(event["kind"] == "log" and "train_runtime" in event["metrics"] for event in found),
    }[name]()


MOMENTS = ("importing", "preparing", "Ray starting", "workers starting", "loading", "training", "saving", "exporting")


def stop_at(folder: Path, job: dict[str, Any], name: str, presses: int) -> dict[str, Any]:
    """Start, press, and look: answered in a line, exit code 130, the record says so, no process left. Returns what was
    measured, in seconds.
    """
    run = folder / "runs" / job["name"]
    terminal = Terminal("train", write_job(job, folder / "job.json"), cwd=folder, env=os.environ)
    try:
        terminal.until(lambda: moment(terminal, run, name), 300)
        answer = terminal.press()
        pressed = time.monotonic()
        if presses == 2:
            second = terminal.press(
                may_end=True
            )  # of one that was only importing, nothing is left after a few hundredths
        code = terminal.wait(300)
        seconds = time.monotonic() - pressed
        assert code == 130, terminal.said[-3000:]
        assert "Traceback" not in terminal.said, terminal.said[-3000:]
        assert terminal.left() == []
    finally:
        terminal.kill()
    if (run / "run.json").exists():
        assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    return {
        "moment": name,
        "presses": presses,
        "answer": round(answer, 3),
        "end": round(seconds, 2),
        **({"second": round(second, 3)} if presses == 2 else {}),
    }


def resume(folder: Path, job: dict[str, Any], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Go on, or start again where nothing had begun; returns every tensor of the last checkpoint."""
    run = folder / "runs" / job["name"]
    arguments = ["--resume"] if (run / "run.json").exists() else []
    ended = run_cli("train", write_job(job, folder / "job.json"), *arguments, env=env)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return last_tensors(run)


def last_tensors(run: Path) -> dict[str, Any]:
    return checkpoint_tensors(run / "checkpoints" / f"checkpoint-{STEPS}")
