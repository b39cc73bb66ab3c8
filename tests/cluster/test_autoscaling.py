"""A cluster that grows from nothing, by Ray's own autoscaler with nodes that are processes of this machine and take a
while to come.
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
from head import Head, started_head
from long_run import PATIENCE_S
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from support import tiny_job, wait_until, write_job, write_rows

SLOW_S = float(os.environ.get("RAYTRAIN_NLP_SLOW_NODES_S", 12))
"""Of a node, from its launch to its coming."""
VERSION = os.environ.get("RAYTRAIN_NLP_AUTOSCALER", "1")
"""1: the second version of Ray's autoscaler, as `ray up` and KubeRay start it; 0: the first."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One head without CPUs, and an autoscaler that has two nodes to give."""
    config = tmp_path_factory.mktemp("autoscaler") / "cluster.yaml"
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": VERSION,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = ["--num-cpus=0", "--object-store-memory=150000000", f"--autoscaling-config={config}"]
    with started_head(
        *arguments, dashboard=False, env=env, before=lambda address: config.write_text(json.dumps(cluster(address)))
    ) as started:
        yield started


def cluster(address: str) -> dict[str, Any]:
    """What `ray up` would make of a file: at most two workers of two CPUs."""
    lists = "cluster_synced_files rsync_exclude rsync_filter initialization_commands setup_commands head_setup_commands worker_setup_commands".split()  # noqa: E501
    return {
        "cluster_name": "slow",
        "max_workers": 3,
        "idle_timeout_minutes": 0.5,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "slow_nodes.SlowNodes",
            "delay_s": SLOW_S,
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {
                "resources": {"CPU": 2, "object_store_memory": 150_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        **{name: [] for name in [*lists, "head_start_ray_commands", "worker_start_ray_commands"]},
        "file_mounts": {},
        "docker": {},
        "auth": {},
    }


def train(
    head: Head, folder: Path, name: str, *arguments: str, **workers: Any
) -> tuple[subprocess.CompletedProcess, float]:
    job = tiny_job(folder, name, training={"max_steps": 3}, workers={"resources_per_worker": {"CPU": 1.5}, **workers})
    begun = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "raytrain_nlp.cli.main",
            "train",
            write_job(job, folder / f"{name}.json"),
            "--json",
            *arguments,
        ],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done, time.monotonic() - begun


def nodes(head: Head) -> int:
    program = (
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(sum(node['Alive'] for node in "
        "ray.nodes()))"
    )
    return int(
        subprocess.run(
            [sys.executable, "-c", program], env=head.env, capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )


def test_nothing_becomes_two_nodes_and_nothing_again(head: Head, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 64)
    assert nodes(head) == 1
    done, seconds = train(head, tmp_path, "grown")
    assert done.returncode == 0, done.stderr
    assert seconds > SLOW_S and json.loads(done.stdout.splitlines()[-1])["world_size"] == 2
    assert "asked for 2 x {CPU: 1.5} + 2 x {CPU: 0.5}; there is {CPU: 0} on 1 node" in done.stderr
    wait_until(lambda: nodes(head) == 1, 120, "no nodes besides the head")


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        (
            {"resources_per_worker": {"CPU": 4}},
            "no node of the cluster and no type its autoscaler can start holds a worker of {CPU: 4} (small: {CPU: 2",
        ),
        (
            {"num_workers": 3},
            "3 workers need 6 CPU (with 0.5 CPU for each worker's feed), with all that its autoscaler may add, the "
            "cluster has 4",
        ),
    ],
)
def test_what_can_never_come_is_refused_at_once(head: Head, tmp_path: Path, workers: dict[str, Any], line: str) -> None:
    write_rows(tmp_path / "train.jsonl", 64)
    done, _ = train(head, tmp_path, "never", **workers)
    assert done.returncode == 2 and line in done.stderr and "waiting for nodes" not in done.stderr, done.stderr
    assert not (tmp_path / "runs" / "never").exists()


def test_what_does_not_come_in_time_ends_in_one_line(head: Head, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 64)
    done, _ = train(head, tmp_path, "late", start_timeout_s=3)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert (
        error.startswith(
            "error: the nodes have not come within workers.start_timeout_s (3 s): asked for 2 x {CPU: 1.5}"
        )
        and "Traceback" not in done.stderr
    )
