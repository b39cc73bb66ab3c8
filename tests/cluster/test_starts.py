"""Starts, many of them: none aborts, none hangs, on an idle machine and on a busy one, however long imports take.

pytest tests/cluster/test_starts.py                      about two hours on two cores
STARTS=6 DRIVER_STARTS=10 pytest tests/cluster/test_starts.py
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import TINY, guarded, plain_job, start_cli, write_job, write_rows

STARTS, DRIVER_STARTS = int(os.environ.get("STARTS", 60)), int(os.environ.get("DRIVER_STARTS", 200))
BUSY = 8
_LIMIT_S = 900
"""On two cores with eight busy processes beside it a start takes minutes; what hangs takes for ever."""
_DRIVER = """
import sys
from raytrain_nlp.config import load_job
from raytrain_nlp.cluster.connection import connect_ahead
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.launch.fit import load_libraries
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.verbs.train import prepare
from pathlib import Path

job = load_job(sys.argv[1])
files = find_job_files(job, Path(job.storage_path))
with connect_ahead(job) as connection:
    prepare(job, files, Path(job.storage_path), connection, Observer())
    connection()
    load_libraries()
print("started")
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # they end with a test that is killed
    processes = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def one_step(folder: Path, kind: str) -> dict[str, Any]:
    """A tiny job of one step."""
    common: dict[str, Any] = {
        "training": {"per_device_train_batch_size": 2, "max_steps": 1},
        "deepspeed": {"zero_stage": 3},
    }
    if kind == "text-classification":
        return plain_job(folder, kind, **common)
    config = (
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        if kind == "causal-lm"
        else TINY
    )
    model = {"config": config, "tokenizer": "train", "tokenizer_training": {"vocab_size": 400}}
    return {**plain_job(folder, kind, **common), "task": {"type": kind, "text_column": "text"}, "model": model}


@pytest.fixture(scope="module", params=[0, BUSY], ids=["idle", "busy"])
def beside(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many processes that never pause, for all starts of one kind."""
    with busy_processes(request.param):
        yield request.param


@pytest.mark.timeout(_LIMIT_S + 60)
@pytest.mark.parametrize("number", range(STARTS // 2))
def test_a_start_of_train(tmp_path: Path, beside: int, number: int) -> None:
    write_rows(tmp_path / "train.jsonl", 40)
    kind = ("causal-lm", "masked-lm", "text-classification")[number % 3]
    job = write_job(one_step(tmp_path, kind), tmp_path / "job.json")
    process = start_cli("train", job, "--json", env=guarded(tmp_path / "guard"))
    out, err = process.communicate(timeout=_LIMIT_S)
    assert process.returncode == 0, err[-2000:]
    assert json.loads(out.splitlines()[-1])["global_step"] == 1
    assert not (tmp_path / "guard").exists(), (tmp_path / "guard").read_text()


@pytest.mark.timeout(_LIMIT_S + 60)
@pytest.mark.parametrize("number", range(DRIVER_STARTS))
def test_a_start_of_the_driver_alone_with_slow_imports(tmp_path: Path, number: int) -> None:
    write_rows(tmp_path / "train.jsonl", 40)
    job = write_job(one_step(tmp_path, "text-classification"), tmp_path / "job.json")
    ended = subprocess.run(
        [sys.executable, "-c", _DRIVER, job],
        env=guarded(tmp_path / "guard", seed=number + 1),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    assert (ended.returncode, ended.stdout) == (0, "started\n"), ended.stderr[-2000:]
    assert not (tmp_path / "guard").exists(), (tmp_path / "guard").read_text()
