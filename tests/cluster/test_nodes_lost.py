"""Nodes that are killed, that come back, and that are told to go, under a run that goes on. Each node is a raylet of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from head import Head, Node, started_head, started_nodes
from support import checkpoint_tensors, events, hook_environment, losses, recorded_rows, tiny_job, wait_until, write_job, write_rows

ROWS, STEPS, SAVE = 400, 240, 20
SLOW = """
import time

from transformers import TrainerCallback


class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.1)
"""
DRAIN = """
import sys, time
import ray
from ray.core.generated import autoscaler_pb2
ray.init(log_to_driver=False, logging_level="ERROR")
node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and sys.argv[1] in node["Resources"])
client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
accepted, why = client.drain_node(node, reason, "spot", int((time.time() + float(sys.argv[2])) * 1000))
assert accepted, why
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    write_rows(folder / "train.jsonl", ROWS)
    (folder / "slow_callback.py").write_text(SLOW)
    return folder


@pytest.fixture
def cluster(folder: Path, tmp_path: Path) -> Iterator[tuple[Head, Callable[[str], Node]]]:
    (tmp_path / "rows").mkdir()
    hooks = hook_environment(tmp_path / "hooks.json", record_rows=str(tmp_path / "rows"))
    hooks = {key: hooks[key] for key in ("PYTHONPATH", "RAYTRAIN_NLP_TEST_HOOKS")}
    with started_head("--num-cpus=0", "--object-store-memory=150000000", dashboard=False) as head, started_nodes(head, hooks) as start:
        yield head, start


def job_of(folder: Path, name: str, workers: Any, **more: Any) -> dict[str, Any]:
    return tiny_job(
        folder, name, deepspeed={"zero_stage": 3}, training={"max_steps": STEPS, "learning_rate": 1e-4}, checkpoint={"save_steps": SAVE},
        trainer={"callbacks": ["slow_callback:Slow"]},
        workers={"num_workers": workers, "resources_per_worker": {"CPU": 1, "place": 1}, **more},
    )  # fmt: skip


def start(head: Head, folder: Path, job: dict[str, Any]) -> subprocess.Popen:
    command = [sys.executable, "-m", "raytrain_nlp.cli.main", "train", write_job(job, folder / f"{job['name']}.json"), "--json"]
    return subprocess.Popen(command, env=head.env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen) -> dict[str, Any]:
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def reach(driver: subprocess.Popen, run: Path, step: int, begun: int) -> None:
    """Wait until the run has been begun so many times and has made a step."""

    def there() -> bool:
        if driver.poll() is not None:
            raise AssertionError(driver.communicate())
        found = events(run) if (run / "events.jsonl").exists() else []
        starts = [number for number, event in enumerate(found) if event["kind"] in ("start", "resume")]
        return len(starts) >= begun and any(event["kind"] == "log" and event["step"] >= step for event in found[starts[begun - 1] :])

    wait_until(there, 180, f"step {step} of start {begun}")


def begun(run: Path) -> list[tuple[int, int]]:
    return [(event["step"], event["world_size"]) for event in events(run) if event["kind"] in ("start", "resume")]


def batches(rows: Path) -> dict[int, list[int]]:
    found: dict[int, set[int]] = {}
    for entry in recorded_rows(rows):
        found.setdefault(entry["step"], set()).update(entry["rows"])
    return {step: sorted(found[step]) for step in sorted(found)}


def whole_run(cluster: Any, folder: Path, rows: Path, name: str, workers: int) -> tuple[Path, dict[int, list[int]]]:
    """The undisturbed run on the nodes there are, and its global batches."""
    run = folder / "runs" / name
    finish(start(cluster[0], folder, job_of(folder, name, workers)))
    seen = batches(rows)
    for file in rows.iterdir():
        file.unlink()
    return run, seen


def test_one_of_three_nodes_is_killed(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """One worker on each; another node comes in its place, and the run ends bit for bit as if nothing had been."""
    head, add = cluster
    nodes = [add(name) for name in "abc"]
    truth, seen = whole_run(cluster, folder, tmp_path / "rows", "whole-3", 3)
    driver = start(head, folder, job_of(folder, "killed-3", 3, max_failures=2))
    run = folder / "runs" / "killed-3"
    reach(driver, run, 30, 1)
    nodes[1].kill()
    add("d")
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [3, 3] and begun(run)[1][0] >= 20
    ours, theirs = (checkpoint_tensors(path / "checkpoints" / f"checkpoint-{STEPS}") for path in (run, truth))
    assert ours.keys() == theirs.keys() and len(ours) > 10 and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert batches(tmp_path / "rows") == seen and losses(run) == losses(truth)


def test_two_nodes_then_one_then_two(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """Elastic under ZeRO-3: the run goes on with the node that is left, and grows again when another comes."""
    head, add = cluster
    nodes = [add(name) for name in "ab"]
    truth, seen = whole_run(cluster, folder, tmp_path / "rows", "whole-2", 2)
    driver = start(head, folder, job_of(folder, "elastic", [1, 2], resize_interval_s=3, max_failures=2))
    run = folder / "runs" / "elastic"
    reach(driver, run, 30, 1)
    nodes[1].kill()
    reach(driver, run, 30, 2)
    add("c")
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [2, 1, 2]
    assert batches(tmp_path / "rows") == seen
    assert losses(run) == pytest.approx(losses(truth), abs=1e-3) and len(losses(run)) == STEPS


def test_a_node_that_is_told_to_go(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """With 30 s notice: a checkpoint is committed in time, at most one step is made twice, and no failure is counted."""
    head, add = cluster
    nodes = [add(name) for name in "ab"]
    job = job_of(folder, "drained", 2, max_failures=0)
    driver = start(head, folder, job)
    run = folder / "runs" / "drained"
    reach(driver, run, 30, 1)
    deadline = time.time() + 30
    subprocess.run([sys.executable, "-c", DRAIN, "b", "30"], env=head.env, check=True, timeout=60)
    wait_until(lambda: any(event["kind"] == "checkpoint" and event["step"] % SAVE for event in events(run)), 30, "a checkpoint out of turn")
    assert time.time() < deadline
    add("c")
    nodes[1].kill()
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [2, 2]
    logged = [event["step"] for event in events(run) if event["kind"] == "log" and "loss" in event["metrics"]]
    assert logged[:STEPS] == list(range(1, STEPS + 1)) or len(logged) <= STEPS + 1
    assert any("is to go" in event["text"] for event in events(run) if event["kind"] == "notice")
