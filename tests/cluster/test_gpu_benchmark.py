"""The benchmark of both sides on a GPU, rehearsed on CPU: its cases, its table and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.parametrize("case", ["zero3", "bert"])
def test_a_rehearsal_trains_both_sides_on_the_same_batches(tmp_path: Path, case: str) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(PROGRAM), "--small", "--only", case, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())["found"][case]
    assert found["largest_loss_difference"] < 1e-4 and found["ratio"] > 0 and found["planned"] > 0
    assert all(found[side]["first_step_s"] > 0 and found[side]["step_s"] > 0 for side in ("ours", "peer"))
    assert f"{case} " in done.stdout


def test_a_case_that_is_none_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--only", "zero9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "zero9" in done.stderr and "zero3" in done.stderr
