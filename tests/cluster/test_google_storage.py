"""`storage_path: gs://...` on an emulator of Google's storage: a killed run goes on and ends with the bits of the run
in a folder.

It needs `pip install gcsfs gcp-storage-emulator`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from long_run import PATIENCE_S
from object_store import free_port
from support import TINY, hook_environment, run_cli, start_cli, tiny_job, write_job, write_rows

STEPS, SAVE = 20, 5
URL = "gs://bucket/runs"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulator with an empty bucket, as fsspec sees it."""
    for module in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(module, reason="gcsfs and gcp-storage-emulator are not installed")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gcp_storage_emulator",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--in-memory",
    ]
    server = subprocess.Popen(
        [*command, "--default-bucket", "bucket"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    try:
        import gcsfs

        end = time.monotonic() + 60
        while True:
            try:
                files = gcsfs.GCSFileSystem(token="anon", use_listings_cache=False, skip_instance_cache=True)
                files.ls("bucket")
                break
            except Exception:
                assert server.poll() is None and time.monotonic() < end, "the emulator does not start"
                time.sleep(0.2)
        yield files
    finally:
        server.kill()
        server.wait()


def job_of(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    return tiny_job(
        folder,
        name,
        model={"config": {**TINY, "hidden_dropout_prob": 0.1}},
        deepspeed={"zero_stage": 3},
        workers={"max_failures": 1},
        training={"max_steps": STEPS},
        checkpoint={"save_steps": SAVE, "save_total_limit": 2},
        **sections,
    )


def test_killed_and_resumed(google: Any, hooks_file: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 400)
    env = hook_environment(hooks_file) | {"STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"]}
    hooks_file.write_text("{}")
    whole = run_cli("train", write_job(job_of(tmp_path, "whole"), tmp_path / "whole.json"), "--json", env=env)
    assert whole.returncode == 0, whole.stderr
    truth = Path(json.loads(whole.stdout.splitlines()[-1])["run_dir"])
    job = write_job(job_of(tmp_path, "killed", storage_path=URL), tmp_path / "killed.json")
    driver = start_cli("train", job, env=env)
    kill = {"point": "mid_step", "rank": 0, "step": 13, "marker": str(tmp_path / "marker"), "parent": driver.pid}
    hooks_file.write_text(json.dumps({"kill": kill}))
    _, err = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == -9 and (tmp_path / "marker").exists(), err
    ended = run_cli("train", job, "--resume", "--json", env=env)
    assert ended.returncode == 0 and "resuming at step" in ended.stderr, ended.stderr
    assert (
        google.cat_file("bucket/runs/killed/model/model.safetensors")
        == (truth / "model" / "model.safetensors").read_bytes()
    )
    record = json.loads(google.cat_file("bucket/runs/killed/run.json"))
    names = {path.removeprefix("bucket/runs/killed/") for path in google.find("bucket/runs/killed")}
    assert record["status"] == "finished" and "driver.json" not in names
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {
        "checkpoint-15",
        "checkpoint-20",
    }
