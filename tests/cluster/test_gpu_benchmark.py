"""The benchmark of both sides on a GPU, rehearsed on CPU: its cases, its table and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def rehearse(out: Path, *arguments: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """What it has found, by case."""
    command = [sys.executable, str(PROGRAM), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())["found"], done


@pytest.mark.parametrize("cases", ["zero3", "lora", "bert,predict"])
def test_a_rehearsal_trains_both_sides_on_the_same_batches(tmp_path: Path, cases: str) -> None:
    everything, done = rehearse(tmp_path / "gpu.json", "--small", "--only", cases)
    for case, found in everything.items():
        assert found["ratio"] > 0 and found["ours"]["rows_per_second"] > 0 and found["peer"]["rows_per_second"] > 0
        if case == "predict":
            assert found["rows"] == 200 and "predictions of 200 rows: " in done.stdout
            continue
        assert found["largest_loss_difference"] < 1e-4 and found["planned"] > 0
        assert all(found[side]["first_step_s"] > 0 and found[side]["step_s"] > 0 for side in ("ours", "peer"))
        assert ("pretrained" in found["settings"]["sources"]) == (case == "lora")
        assert f"{case} " in done.stdout
    assert list(everything) == cases.split(",")


def test_what_the_budget_is_too_short_for_is_left_out_and_said(tmp_path: Path) -> None:
    everything, done = rehearse(tmp_path / "gpu.json", "--budget", "5", "--only", "zero3,predict,lora")
    assert not any("ours" in found or "peer" in found for found in everything.values())
    for said in ("zero3, ours: left out", "zero3, peer: left out", "predict: left out", "lora: left out"):
        assert said in done.stderr


def test_a_case_that_is_none_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--only", "zero9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "zero9" in done.stderr and "zero3" in done.stderr
