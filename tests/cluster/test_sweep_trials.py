"""One sweep through what can happen to it: its driver is killed, the user's code raises, Ray's memory monitor kills a
worker. It goes on and tells.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from support import events, run_cli, start_cli, tiny_job, wait_until, write_job, write_rows

from raytrain_nlp.checkpoint import store
from raytrain_nlp.paths import SweepPaths

CODE = """
import time

from transformers import TrainerCallback


class Faulty(TrainerCallback):
    held = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.learning_rate == 1e-3:
            raise KeyError("a mistake of mine")
        if state.global_step == 3 and args.learning_rate == 2e-3 and args.process_index == 0:
            while len(self.held) < 112:  # 7 GiB, and no more: a monitor that does not act must not cost the machine
                self.held.append(b"x" * (64 << 20))
                time.sleep(0.02)
            time.sleep(60)
            raise RuntimeError("no memory monitor ended this process")
"""
ROWS = 96
GIB = 1 << 30


@pytest.fixture
def stale_ray() -> Iterator[Path]:
    """A folder for Ray in which a `ray start` that was killed has left the address of its cluster; near the root, for
    Ray's sockets are below it.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def environment(tmp_path: Path, stale_ray: Path) -> dict[str, str]:
    """Of a driver whose memory monitor acts when five more GiB are taken, and whose workers find the user's module."""
    memory = psutil.virtual_memory()
    if memory.available < 10 * GIB:
        pytest.skip("needs 10 GiB of free memory")
    (tmp_path / "faulty_callback.py").write_text(CODE)
    return {
        **os.environ,
        "RAY_TMPDIR": str(stale_ray),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])),
        "RAY_memory_usage_threshold": f"{(memory.total - memory.available + 5 * GIB) / memory.total:.3f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }


def test_driver_killed_then_a_trial_raises_and_another_takes_all_memory(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """SIGKILL in the second of four trials. Resumed, the finished one stays, the running one goes on, and two fail,
    each for its reason.
    """
    write_rows(tmp_path / "train.jsonl", ROWS)
    sections = {
        "data": {"validation": str(tmp_path / "train.jsonl")},
        "training": {"num_train_epochs": 4, "eval_strategy": "epoch"},
    }
    job = tiny_job(tmp_path, "base", trainer={"callbacks": ["faulty_callback:Faulty"]}, **sections)
    sweep = {
        "kind": "sweep",
        "name": "faulty",
        "job": job,
        "search_space": {"training.learning_rate": {"grid": [3e-3, 1e-2, 1e-3, 2e-3]}},
        "searcher": {"type": "grid"},
        "max_concurrent_trials": 1,
    }
    file, paths = write_job(sweep, tmp_path / "sweep.yaml"), SweepPaths(tmp_path / "runs", "faulty")
    _kill_in_second_trial(start_cli("sweep", file, env=environment), paths)
    before = (paths.trial(0).run / "events.jsonl").read_text()
    finished = run_cli("sweep", file, "--resume", "--json", env=environment)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert (
        result["trials"] == {"finished": 2, "stopped": 0, "failed": 2} and result["tokenized_rows"] == ROWS
    )  # one file is both parts
    assert (paths.trial(0).run / "events.jsonl").read_text() == before
    assert [event["step"] for event in events(paths.trial(1).run) if event["kind"] == "resume"][0] >= ROWS // 16
    reasons = [json.loads((paths.trial(number).run / "trial.json").read_text())["reason"] for number in (2, 3)]
    assert (
        "faulty_callback.py" in reasons[0] and "a mistake of mine" in reasons[0] and "ran out of memory" in reasons[1]
    )
    assert "a mistake of mine" in finished.stdout + finished.stderr  # the table
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("raytrain_nlp").experiment_id])
    status = {run.info.run_name: run.info.status for run in runs}
    names = ["faulty", "trial-0000", "trial-0001", "trial-0002", "trial-0003"]
    assert status == dict(zip(names, ["FINISHED"] * 3 + ["FAILED"] * 2, strict=True)) and len(runs) == len(names)


def _kill_in_second_trial(driver: Any, paths: SweepPaths) -> None:
    checkpoints = paths.trial(1).checkpoints

    def begun() -> bool:
        assert driver.poll() is None, driver.communicate()
        return checkpoints.exists() and bool(store.list_checkpoints(checkpoints))

    wait_until(begun, 240, "the second trial's first checkpoint")
    os.kill(driver.pid, 9)
    driver.communicate(timeout=60)
