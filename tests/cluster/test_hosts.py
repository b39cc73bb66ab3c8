"""Hosts that share no folder and no address: a run in object storage, and one host that is cut off from the others for
a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from head import Head, Node, started_head, started_nodes
from hosts import BRIDGE, Host, copies_on_this_side, started_hosts
from long_run import STEPS, finish, job_of, start
from object_store import ObjectStore, free_port, serving
from support import checkpoint_tensors, hook_environment, wait_until

URL = "s3://bucket/runs"
CUT_S = 60


@pytest.fixture(scope="module")
def apart(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Head, ObjectStore, list[Host], Callable[..., Node]]]:
    """A head without room on this side, an S3 server, and two hosts; what adds a node."""
    scratch = tmp_path_factory.mktemp("apart")
    hooks = hook_environment(scratch / "hooks.json")
    with started_hosts("a", "b") as hosts, serving(free_port(), scratch, "bucket", ip=BRIDGE) as store:
        keys = store.environment | {"GLOO_SOCKET_IFNAME": "eth0"}
        nodes_env = {key: hooks[key] for key in ("PYTHONPATH", "RAYTRAIN_NLP_TEST_HOOKS")} | keys
        flags = ("--num-cpus=0", "--object-store-memory=150000000")
        with (
            started_head(*flags, dashboard=False, env=store.environment, ip=BRIDGE) as head,
            started_nodes(head, nodes_env) as add,
        ):
            head.env.update(store.environment)
            yield head, store, hosts, add


def tensors_of(store: ObjectStore, name: str, folder: Path) -> dict[str, torch.Tensor]:
    prefix = f"runs/{name}/checkpoints/checkpoint-{STEPS}/"
    for key, content in store.objects("bucket", prefix).items():
        path = folder / name / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return checkpoint_tensors(folder / name)


def test_cut_off_for_a_minute(apart: Any, folder: Path, tmp_path: Path) -> None:
    """The undisturbed run, all of whose files are where no other host sees them; then one whose second host is cut off
    in mid-step.

    Ray takes a host it does not hear of for dead, and the host's raylet ends when it hears that; its place is taken by
    a new one.
    """
    head, store, (first, second), add = apart
    nodes = [add("a", first), add("b", second)]
    finish(start(head, folder, job_of(folder, "whole", 2) | {"storage_path": URL}))
    whole = tensors_of(store, "whole", tmp_path)
    assert len(whole) > 10 and not copies_on_this_side()
    driver = start(head, folder, job_of(folder, "cut", 2, max_failures=3) | {"storage_path": URL})
    committed = "runs/cut/checkpoints/checkpoint-40/manifest.json"
    wait_until(lambda: driver.poll() is not None or store.objects("bucket", committed), 180, "a checkpoint of step 40")
    second.cut()
    cut = time.monotonic()
    time.sleep(CUT_S)  # what is tested is this minute
    second.heal()
    nodes[1].process.wait(120)  # its raylet hears that it was given up
    add("c", second)
    result = finish(driver)
    assert result["global_step"] == STEPS and result["restarts"] >= 1
    assert time.monotonic() - cut < 300
    tensors = tensors_of(store, "cut", tmp_path)
    assert tensors.keys() == whole.keys() and all(torch.equal(tensors[name], tensor) for name, tensor in whole.items())
