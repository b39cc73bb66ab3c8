"""Nodes that are killed, that come back, and that are told to go, under a run that goes on. Each node is a raylet of
its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from long_run import SAVE, STEPS, assert_same_end, batches, begun, finish, job_of, reach, start, whole_run
from support import events, losses, wait_until

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


def test_one_of_three_nodes_is_killed(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """One worker on each; another node comes in its place, and the run ends bit for bit as if nothing had been."""
    head, add = cluster
    nodes = [add(name) for name in "abc"]
    truth, seen = whole_run(head, folder, tmp_path / "rows", "whole-3", 3)
    driver = start(head, folder, job_of(folder, "killed-3", 3, max_failures=2))
    run = folder / "runs" / "killed-3"
    reach(driver, run, 30, 1)
    nodes[1].kill()
    add("d")
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [3, 3] and begun(run)[1][0] >= 20
    assert_same_end(run, truth)
    assert batches(tmp_path / "rows") == seen


def test_two_nodes_then_one_then_two(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """Elastic under ZeRO-3: the run goes on with the node that is left, and grows again when another comes."""
    head, add = cluster
    nodes = [add(name) for name in "ab"]
    truth, seen = whole_run(head, folder, tmp_path / "rows", "whole-2", 2)
    driver = start(head, folder, job_of(folder, "elastic", [1, 2], resize_interval_s=3, max_failures=2))
    run = folder / "runs" / "elastic"
    reach(driver, run, 30, 1)
    nodes[1].kill()
    reach(driver, run, 30, 2)
    add("c")
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [2, 1, 2]
    assert batches(tmp_path / "rows") == seen
    assert losses(run) == pytest.approx(losses(truth), abs=1e-5) and len(losses(run)) == STEPS


def test_a_node_that_is_told_to_go(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """With 30 s notice: a checkpoint is committed in time, at most one step is made twice, and no failure is
    counted.
    """
    head, add = cluster
    nodes = [add(name) for name in "ab"]
    job = job_of(folder, "drained", 2, max_failures=0)
    driver = start(head, folder, job)
    run = folder / "runs" / "drained"
    reach(driver, run, 30, 1)
    deadline = time.time() + 30
    subprocess.run([sys.executable, "-c", DRAIN, "b", "30"], env=head.env, check=True, timeout=60)
    wait_until(
        lambda: any(event["kind"] == "checkpoint" and event["step"] % SAVE for event in events(run)),
        30,
        "a checkpoint out of turn",
    )
    assert time.time() < deadline
    add("c")
    nodes[1].kill()
    result = finish(driver)
    assert result["global_step"] == STEPS and [count for _, count in begun(run)] == [2, 2]
    logged = [event["step"] for event in events(run) if event["kind"] == "log" and "loss" in event["metrics"]]
    assert logged[:STEPS] == list(range(1, STEPS + 1)) or len(logged) <= STEPS + 1
    assert any("is to go" in event["text"] for event in events(run) if event["kind"] == "notice")
