"""Ctrl-C at eight moments of a run, once and twice, in a terminal; the seconds until it is answered and until all has
ended.

pytest -s tests/cluster/test_ctrl_c_at_every_moment.py    REPEAT=5 times each: 40 minutes on two cores; prints a table
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from moments import MOMENTS, last_tensors, resume, stop_at, stoppable_job
from support import run_cli, with_mlflow, write_job

REPEAT = int(os.environ.get("REPEAT", 5))
SECOND_S = 3.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    with_mlflow(folder / "runs")
    assert run_cli("train", write_job(stoppable_job(folder, "stopped"), folder / "job.json")).returncode == 0
    return last_tensors(folder / "runs" / "stopped")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("name", MOMENTS)
def test_ctrl_c(tmp_path: Path, undisturbed: dict[str, Any], name: str, presses: int) -> None:
    with_mlflow(tmp_path / "runs")
    job = stoppable_job(tmp_path, "stopped")
    for number in range(REPEAT):
        shutil.rmtree(tmp_path / "runs" / "stopped", ignore_errors=True)
        found = stop_at(tmp_path, job, name, presses)
        print(json.dumps(found), flush=True)
        if presses == 2 and not os.environ.get("BUSY"):
            assert found["end"] < SECOND_S
        if number == 0:
            tensors = resume(tmp_path, job)
            assert tensors.keys() == undisturbed.keys()
            assert all(torch.equal(tensors[key], undisturbed[key]) for key in undisturbed)
