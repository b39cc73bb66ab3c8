"""Trials that fail beside one that does not: the user's code raises, Ray's memory monitor kills a worker. The sweep goes on and tells."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import run_cli, tiny_job, write_job, write_rows

CODE = """
from transformers import TrainerCallback


class Faulty(TrainerCallback):
    held = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.learning_rate == 1e-3:
            raise KeyError("a mistake of mine")
        if state.global_step == 3 and args.learning_rate == 2e-3 and args.process_index == 0:
            while True:
                self.held.append(b"x" * (64 << 20))
"""
GIB = 1 << 30


@pytest.fixture
def stale_ray() -> Iterator[Path]:
    """A folder for Ray in which a `ray start` that was killed has left the address of its cluster; near the root, for Ray's sockets are below it."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_trial_raises_and_another_takes_all_memory(tmp_path: Path, stale_ray: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 8 * GIB:
        pytest.skip("needs 8 GiB of free memory")
    (tmp_path / "faulty_callback.py").write_text(CODE)
    write_rows(tmp_path / "train.jsonl", 160)
    job = tiny_job(tmp_path, "base", data={"validation": str(tmp_path / "train.jsonl")}, trainer={"callbacks": ["faulty_callback:Faulty"]})
    sweep = {
        "kind": "sweep", "name": "faulty", "job": job, "search_space": {"training.learning_rate": {"grid": [1e-3, 2e-3, 3e-3]}}, "searcher": {"type": "grid"},
        "max_concurrent_trials": 1,
    }  # fmt: skip
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(stale_ray),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])),
        "RAY_memory_usage_threshold": f"{(memory.total - memory.available + 5 * GIB) / memory.total:.3f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }
    finished = run_cli("sweep", write_job(sweep, tmp_path / "sweep.yaml"), "--json", env=environment)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["trials"] == {"finished": 1, "stopped": 0, "failed": 2}
    assert result["best_params"] == {"training.learning_rate": 3e-3}
    reasons = {
        trial["params"]["training.learning_rate"]: trial["reason"]
        for trial in (json.loads(path.read_text()) for path in (tmp_path / "runs" / "faulty" / "trials").glob("*/trial.json"))
    }
    assert "faulty_callback.py" in reasons[1e-3] and "a mistake of mine" in reasons[1e-3]
    assert "ran out of memory" in reasons[2e-3]
    table = finished.stdout + finished.stderr
    assert "a mistake of mine" in table
