"""A rank that is slow in whole runs: its rows or its forward pass; ranks that are alike, beside processes that never
pause, are not named.

pytest -s tests/cluster/test_slow_ranks.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import events, run_cli, tiny_job, write_job, write_rows

CODE = """
import os, time
from transformers import Trainer

SLOW = {kind!r} if os.environ.get("RANK") == "1" else ""


class Slow(Trainer):
    def get_batch_samples(self, *args, **kwargs):
        if SLOW == "rows":
            time.sleep(0.4)
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        if SLOW == "forward":
            time.sleep(0.4)
        return super().compute_loss(*args, **kwargs)
"""


def straggler_of(folder: Path, kind: str, stage: int, steps: int) -> tuple[list[dict[str, Any]], str]:
    write_rows(folder / "train.jsonl", 2000)
    (folder / f"slow_{kind}.py").write_text(CODE.format(kind=kind))
    job = tiny_job(
        folder, f"{kind}{stage}", deepspeed={"zero_stage": stage}, trainer={"class": f"slow_{kind}:Slow"},
        training={"max_steps": steps, "save_strategy": "no", "num_train_epochs": 4},
    )  # fmt: skip
    done = run_cli("train", write_job(job, folder / f"{kind}.json"), cwd=folder)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / f"{kind}{stage}"
    found = [event for event in events(run) if event["kind"] == "straggler"]
    assert json.loads((run / "run.json").read_text()).get("faults", []) == found
    return found, done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(("kind", "waits_for"), [("rows", "data"), ("forward", "compute")])
def test_a_slow_rank_is_named_with_what_it_is_slow_in(tmp_path: Path, stage: int, kind: str, waits_for: str) -> None:
    found, said = straggler_of(tmp_path, kind, stage, 150)
    print(f"{kind}, ZeRO {stage}: {found}", flush=True)
    assert [(event["rank"], event["waits_for"]) for event in found] == [(1, waits_for)]
    assert "rank 1 is" in said and "slower than the others" in said


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 3])
def test_equal_ranks_on_a_busy_machine_are_not_named(tmp_path: Path, stage: int) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        found, _ = straggler_of(tmp_path, "nothing", stage, 400)
    finally:
        for process in busy:
            process.kill()
    assert found == []
