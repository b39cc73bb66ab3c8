"""`certify` as its user runs it: the quickstart is certified, and a fault that was planted is found and named. About
three minutes on two free cores for the quickstart, two for the fault.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support import TINY, hook_environment, plain_job, run_cli, write_job, write_rows

ROOT = Path(__file__).resolve().parents[2]


def certified(arguments: list[str], folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    done = run_cli("certify", *arguments, "--output", str(folder), **options)
    assert (folder / "certificate.json").exists(), done.stderr
    return done, json.loads((folder / "certificate.json").read_text())


def verdicts(certificate: dict[str, Any], run: str) -> dict[str, str]:
    return {check["what"].partition(",")[0]: check["verdict"] for check in certificate["checks"] if check["run"] == run}


@pytest.mark.timeout(1800)
def test_the_quickstart(tmp_path: Path) -> None:
    folder, storage = tmp_path / "certificate", tmp_path / "runs"
    job = str(ROOT / "jobs" / "quickstart.yaml")
    done, found = certified([job, "--set", f"storage_path={storage}"], folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    print(json.dumps({"seconds": found["seconds"], "runs": found["runs"], "kills": found["kills"]}))
    assert [(kill["what"], kill["why_not"]) for kill in found["kills"]] == [("worker", ""), ("driver", "")]
    assert all(kill["resumed"] for kill in found["kills"]) and found["runs"]["killed"]["made_again"] > 0
    shown = verdicts(found, "killed")
    assert {*shown.values()} == {"shown"} and {"weights", "optimizer state", "losses and evaluation figures"} <= {
        *shown
    }
    other = verdicts(found, "other-size")
    assert other["rows of each global batch"] == other["tokens and labels of each row"] == "shown"
    assert other["losses"] == other["weights"] == "not shown"  # the model has dropout
    assert not storage.exists() and sorted(path.name for path in folder.iterdir()) == [
        "certificate.json",
        "certificate.md",
    ]
    claimed = found.pop("sha256")
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == claimed


@pytest.mark.timeout(1800)
def test_a_moment_that_is_lost_is_found_and_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 200)
    workers = {"num_workers": 1, "use_gpu": False}
    job = plain_job(tmp_path, "faulty", model={"config": TINY}, deepspeed={"zero_stage": 0}, workers=workers)
    env = hook_environment(tmp_path / "hooks.json", zero_moment=True)
    file = write_job(job, tmp_path / "job.yaml")
    done, found = certified([file, "--steps", "6"], tmp_path / "certificate", env=env)
    assert done.returncode == 1 and "differ" in found["verdict"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any("killed, optimizer state" in line and "exp_avg" in line and "step 4" in line for line in lines), lines
    shown = verdicts(found, "killed")
    assert shown["rows of each global batch"] == shown["rows counted"] == "shown"
    assert shown["optimizer state"] == shown["weights"] == "differs"
