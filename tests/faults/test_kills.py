"""Real SIGKILLs: a killed run ends with the weights and optimizer state of the run that was never killed, bit for
bit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import colours, show
from support import (
    TINY,
    checkpoint_tensors,
    events,
    hook_environment,
    losses,
    recorded_rows,
    run_cli,
    start_cli,
    tiny_job,
    wait_until,
    write_job,
    write_rows,
)  # fmt: skip

from raytrain_nlp.reporting.recoveries import read_recoveries
from raytrain_nlp.run.saved_run import find_run

ROWS, STEPS, SAVE = 393, 25, 5
DROPOUT = {**TINY, "hidden_dropout_prob": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    write_rows(folder / "train.jsonl", ROWS)
    return folder


def job_of(folder: Path, name: str, stage: int) -> dict[str, Any]:
    """25 steps, dropout (so that RNG states matter), a checkpoint every 5."""
    return tiny_job(
        folder,
        name,
        model={"config": DROPOUT},
        deepspeed={"zero_stage": stage},
        checkpoint={"save_steps": SAVE},
        workers={"max_failures": 2},
    )


@pytest.fixture(scope="module")
def uninterrupted(train_warm: Any, folder: Path) -> Any:
    """The truth for each ZeRO stage: run once, never killed."""
    done: dict[int, Any] = {}

    def run(stage: int) -> Any:
        if stage not in done:
            done[stage] = train_warm(job_of(folder, f"whole-{stage}", stage))
        return done[stage]

    return run


def assert_same_run(run: Path, truth: Path) -> None:
    """Bit for bit: weights, optimizer, scheduler, RNG of the last checkpoint, exported weights, and every loss."""
    ours, theirs = (checkpoint_tensors(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (run, truth))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert (run / "model" / "model.safetensors").read_bytes() == (truth / "model" / "model.safetensors").read_bytes()
    assert losses(run) == losses(truth) and len(losses(run)) == STEPS


def assert_rows_once(rows: Path) -> None:
    """The rows of the steps that count (of a repeated step: its last time) are exactly the dataset."""
    steps: dict[tuple[int, int], list[int]] = {}
    for file in sorted(rows.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        steps |= {
            (entry["step"], entry["rank"]): entry["rows"] for entry in map(json.loads, file.read_text().splitlines())
        }
    assert sorted(row for part in steps.values() for row in part) == list(range(ROWS))
    assert recorded_rows(rows)


def assert_one_mlflow_run(storage: Path, run: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raytrain_nlp").experiment_id
    found = [entry for entry in client.search_runs([experiment], max_results=1000) if entry.info.run_name == run.name]
    assert len(found) == 1 and found[0].info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(found[0].info.run_id, "loss")]
    assert steps == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def resumed(_ray: str, hooks_file: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A worker killed in mid-epoch, which the driver makes good by itself; ten steps later the driver, which the user
    does with `--resume`.

    Stage 3 in a Ray that the driver starts, and that dies with it; stage 0 in one that outlives it.
    """
    done: dict[int, tuple[Path, Path]] = {}

    def run(stage: int) -> tuple[Path, Path]:
        if stage not in done:
            scratch = tmp_path_factory.mktemp(f"killed-{stage}")
            done[stage] = _killed_twice(
                folder, stage, scratch, *((None, scratch / "hooks.json") if stage else (_ray, hooks_file))
            )
        return done[stage]

    return run


def _killed_twice(folder: Path, stage: int, scratch: Path, address: str | None, hooks: Path) -> tuple[Path, Path]:
    rows = scratch / "rows"
    rows.mkdir()
    job = write_job(job_of(folder, f"killed-{stage}", stage), scratch / "job.yaml")
    env = hook_environment(hooks, record_rows=str(rows))
    driver = start_cli("train", job, env=env, address=address)
    kills = [
        {"point": "mid_step", "rank": 1, "step": 8, "marker": str(scratch / "worker-killed")},
        {"point": "mid_step", "rank": 0, "step": 18, "marker": str(scratch / "driver-killed"), "parent": driver.pid},
    ]
    hooks.write_text(json.dumps({"record_rows": str(rows), "kill": kills}))
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == -9 and (scratch / "worker-killed").exists() and (scratch / "driver-killed").exists(), (
        err
    )
    run = folder / "runs" / f"killed-{stage}"
    pids = [pid for event in events(run) if event["kind"] in ("start", "resume") for pid in event["pids"]]
    wait_until(lambda: not any(_alive(pid) for pid in pids), 60, "the workers of a dead driver end")
    ended = run_cli("train", job, "--resume", "--json", env=env, address=address)
    hooks.write_text("{}")
    assert ended.returncode == 0 and "resuming at step 15" in ended.stderr, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["global_step"] == STEPS
    return run, rows


@pytest.mark.parametrize("stage", [0, 3])
def test_worker_killed_then_driver_killed_and_resumed(
    folder: Path, uninterrupted: Any, resumed: Any, stage: int
) -> None:
    truth = uninterrupted(stage)
    run, rows = resumed(stage)
    assert [event["step"] for event in events(run) if event["kind"] == "resume"] == [5, 15]
    failed = [event["ranks"] for event in events(run) if event["kind"] == "failure"]
    assert failed and {1} <= {rank for ranks in failed for rank in ranks} <= {0, 1}
    by_worker, by_driver = read_recoveries(find_run(run))
    assert (by_worker.step, by_driver.step) == (5, 15) and len(by_worker.seconds) == 6 and len(by_driver.seconds) == 5
    assert_same_run(run, Path(truth.run_dir))
    assert_rows_once(rows)
    assert_one_mlflow_run(folder / "runs", run)


def test_the_page_of_a_resumed_run_in_a_browser(chromium: str, resumed: Any, tmp_path: Path) -> None:
    import raytrain_nlp

    page = Path(raytrain_nlp.report(resumed(3)[0]).page)
    assert "went on from step 5" in page.read_text() and page.stat().st_size < 2_000_000
    console, asked, picture = show(chromium, page, tmp_path)
    assert not console and not asked and colours(picture) > 200


def test_killed_during_the_commit(shared_ray: Any, folder: Path, uninterrupted: Any, tmp_path: Path) -> None:
    """One run, killed when a rank has written its files, just before the rename that commits, and just after it."""
    import raytrain_nlp

    truth = uninterrupted(3)
    places = [("after_stage", 1, 10), ("before_rename", 0, 15), ("after_commit", 0, 20)]
    shared_ray(
        kill=[
            {"point": point, "rank": rank, "step": step, "marker": str(tmp_path / point)}
            for point, rank, step in places
        ]
    )
    job = job_of(folder, "killed-in-commit", 3)
    result = raytrain_nlp.train({**job, "workers": {**job["workers"], "max_failures": 3}})
    run = Path(result.run_dir)
    assert {path.name for path in tmp_path.iterdir()} == {point for point, _, _ in places}
    assert [event["step"] for event in events(run) if event["kind"] == "resume"] == [5, 10, 20]
    assert not list((run / "checkpoints").glob(".*"))  # nothing half-written is left
    assert_same_run(run, Path(truth.run_dir))


def test_damaged_checkpoints_are_passed_over(shared_ray: Any, folder: Path, uninterrupted: Any) -> None:
    """Newest deleted by rank, next with a byte flipped, next truncated: the fourth is used, and each is told."""
    import raytrain_nlp

    truth = uninterrupted(3)
    run = folder / "runs" / "damaged"
    _copy_as_failed(Path(truth.run_dir), run, "damaged")
    shutil.rmtree(run / "checkpoints" / "checkpoint-25")
    next((run / "checkpoints" / "checkpoint-20").rglob("*zero_pp_rank_1*optim_states.pt")).unlink()
    flipped = next((run / "checkpoints" / "checkpoint-15").rglob("*zero_pp_rank_0*optim_states.pt"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    truncated = run / "checkpoints" / "checkpoint-10" / "rng-1.state"
    truncated.write_bytes(truncated.read_bytes()[:-10])
    result = raytrain_nlp.train(job_of(folder, "damaged", 3), resume=True)
    notices = [event["text"] for event in events(run) if event["kind"] == "notice"]
    assert len(notices) == 3 and all(
        f"checkpoint-{step} is damaged" in text for step, text in zip((20, 15, 10), notices, strict=True)
    )
    assert [event["step"] for event in events(run) if event["kind"] == "resume"] == [5]
    assert_same_run(Path(result.run_dir), Path(truth.run_dir))


def test_a_planted_pickle_is_never_executed(shared_ray: Any, folder: Path, uninterrupted: Any, tmp_path: Path) -> None:
    """Even where the manifest was made to match it."""
    import hashlib
    import pickle

    import raytrain_nlp

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "canary"),)

    run = folder / "runs" / "planted"
    _copy_as_failed(Path(uninterrupted(3).run_dir), run, "planted")
    for step in (10, 15, 20, 25):
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{step}")
    checkpoint = run / "checkpoints" / "checkpoint-5"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"].endswith((".pt", ".state")):
            path = checkpoint / entry["path"]
            path.write_bytes(pickle.dumps(Evil()))
            entry |= {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(raytrain_nlp.RunError):
        raytrain_nlp.train(
            {
                **job_of(folder, "planted", 3),
                "workers": {"num_workers": 2, "resources_per_worker": {"CPU": 0.5}, "max_failures": 0},
            },
            resume=True,
        )
    assert not (tmp_path / "canary").exists()


def test_a_loss_that_is_not_finite_stops_the_run(shared_ray: Any, folder: Path, tmp_path: Path) -> None:
    import raytrain_nlp

    shared_ray(nan={"rank": 1, "step": 7}, record_rows=str(tmp_path))
    with pytest.raises(raytrain_nlp.NonFiniteLossError, match="the loss is nan at step 7, before its update") as caught:
        raytrain_nlp.train(job_of(folder, "not-finite", 3))
    rows = next(entry["rows"] for entry in recorded_rows(tmp_path) if entry["rank"] == 1 and entry["step"] == 6)
    text = (folder / "train.jsonl").read_text().splitlines()
    assert all(f"{row} ({folder / 'train.jsonl'}:{row + 1})" in str(caught.value) for row in rows) and len(text) == ROWS
    run = folder / "runs" / "not-finite"
    assert [path.name for path in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-5"]
    assert [event["kind"] for event in events(run)].count("start") == 1 and not any(
        event["kind"] == "resume" for event in events(run)
    )  # no retry


def _copy_as_failed(source: Path, target: Path, name: str) -> None:
    """A copy of a finished run that looks like one whose driver died."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("ray", "model", "driver.lock", "tracking.json"))
    record = json.loads((target / "run.json").read_text())
    record["job"]["name"] = name
    (target / "run.json").write_text(json.dumps({**record, "status": "failed"}))


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
