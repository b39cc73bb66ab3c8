"""Ctrl-C in a terminal. All moments, several times each: tests/cluster/test_ctrl_c_at_every_moment.py."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import torch
from moments import last_tensors, resume, stop_at, stoppable_job
from support import events, guarded, with_mlflow


def test_once_while_training_commits_a_checkpoint_from_which_the_run_goes_on(train_warm: Any, tmp_path: Path) -> None:
    with_mlflow(tmp_path / "runs")
    job, whole = stoppable_job(tmp_path, "stopped"), stoppable_job(tmp_path, "whole")
    stop_at(tmp_path, job, "training", presses=1)
    run = tmp_path / "runs" / "stopped"
    steps = [event["step"] for event in events(run) if event["kind"] == "log" and "loss" in event["metrics"]]
    assert (
        run / "checkpoints" / f"checkpoint-{max(steps)}" / "manifest.json"
    ).exists()  # nothing that was trained is lost
    assert _mlflow_ends(tmp_path) == [("KILLED", "stopped")]
    guard = tmp_path / "guard"
    stopped = resume(tmp_path, job, guarded(guard))
    assert not guard.exists(), (
        guard.read_text()
    )  # no thread of the driver has imported torch, transformers or DeepSpeed
    train_warm(whole)
    undisturbed = last_tensors(tmp_path / "runs" / "whole")
    assert stopped.keys() == undisturbed.keys()
    assert all(torch.equal(stopped[key], undisturbed[key]) for key in undisturbed)


def test_twice_while_workers_start_ends_at_once(tmp_path: Path) -> None:
    with_mlflow(tmp_path / "runs")
    found = stop_at(tmp_path, stoppable_job(tmp_path, "ended"), "workers starting", presses=2)
    assert (
        found["answer"] < 30 and found["end"] < 60
    )  # in fact hundredths of a second, and under 3 s: not judged by the clock here


def _mlflow_ends(folder: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(folder / "runs" / "mlflow.db") as database:
        return database.execute(
            "select r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid and t.key = "
            "'raytrain_nlp.status'"
        ).fetchall()
