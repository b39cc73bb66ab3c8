"""Is there room for a job, may it come, or never: counted by hand on clusters that are lists of nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain_nlp.cluster import capacity, resources
from raytrain_nlp.cluster.resources import NodeType, Scaling
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.errors import InputError, RunError


def job_of(streaming: bool = False, **workers: Any) -> TrainJob:
    tiny = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return load_job(
        {
            "task": {"type": "text-classification", "text_columns": ["text"]},
            "model": {"config": tiny, "tokenizer": "train"},
            "data": {"train": "train.jsonl", "streaming": streaming},
            "training": {"max_steps": 3},
            "workers": workers,
        }
    )


def decide(
    monkeypatch: pytest.MonkeyPatch,
    job: TrainJob,
    living: list[dict[str, float]],
    scaling: Scaling | None,
    alive: int = 0,
) -> str:
    """`go`, `wait`, or why the job is refused."""
    monkeypatch.setattr(capacity, "living_nodes", lambda: living)
    monkeypatch.setattr(capacity, "find_scaling", lambda: scaling)
    monkeypatch.setattr(capacity, "alive_of", lambda name: alive)
    waits: list[str] = []
    monkeypatch.setattr(capacity, "_wait", lambda *_: waits.append("wait"))
    monkeypatch.setattr(capacity, "_ask", lambda bundles: None)  # else a Ray starts in this process, and stays
    monkeypatch.setattr(capacity, "_take_back", lambda group: None)
    try:
        capacity.wait_for_room(job, print)
    except InputError as error:
        return str(error)
    return "wait" if waits else "go"


NOTHING = Scaling([], 0)
GPUS = Scaling([NodeType("gpu", {"CPU": 8, "GPU": 4}, 2)], 3)


@pytest.mark.parametrize(
    ("workers", "living", "scaling", "alive", "what"),
    [
        ({"num_workers": 2}, [{"CPU": 3}], NOTHING, 0, "go"),  # 2 workers and 2 feeds of half a CPU
        (
            {"num_workers": 2},
            [{"CPU": 2.9}],
            NOTHING,
            0,
            "2 workers need 3 CPU (with 0.5 CPU for each worker's feed), the cluster has 2.9",
        ),
        ({"num_workers": 2, "streaming": True}, [{"CPU": 3}], NOTHING, 0, "2 workers need 3.5 CPU"),
        (
            {"num_workers": 2, "resources_per_worker": {"CPU": 3}},
            [{"CPU": 2}] * 4,
            NOTHING,
            0,
            "2 workers of {CPU: 3} and their feeds do not fit on its nodes",
        ),
        ({"num_workers": 8, "use_gpu": True}, [{"CPU": 0}], GPUS, 0, "wait"),
        (
            {"num_workers": 9, "use_gpu": True},
            [{"CPU": 0}],
            GPUS,
            0,
            "9 workers need 9 GPU, with all that its autoscaler may add, the cluster has 8",
        ),
        ({"num_workers": 8, "use_gpu": True}, [{"CPU": 0}, {"CPU": 8, "GPU": 4}], GPUS, 1, "wait"),
        (
            {"num_workers": 8, "use_gpu": True},
            [{"CPU": 0}, {"CPU": 8, "GPU": 4}],
            GPUS,
            2,
            "8 workers need 8 GPU",
        ),  # the other node of the type is elsewhere
        (
            {"num_workers": 1, "use_gpu": True, "resources_per_worker": {"GPU": 5}},
            [],
            GPUS,
            0,
            "no type its autoscaler can start holds a worker of {CPU: 1, GPU: 5}",
        ),
        ({"num_workers": 99}, [{"CPU": 0}], None, 0, "wait"),  # what this autoscaler can start, only it knows
    ],
)
def test_go_wait_or_never(
    monkeypatch: pytest.MonkeyPatch,
    workers: dict[str, Any],
    living: list[dict[str, float]],
    scaling: Scaling | None,
    alive: int,
    what: str,
) -> None:
    found = decide(monkeypatch, job_of(**workers), living, scaling, alive)
    assert found == what if what in ("go", "wait") else what in found


def test_ten_tenths_are_one() -> None:
    assert not resources.left_over([{"CPU": 0.1}] * 10, [{"CPU": 1}])
    assert len(resources.left_over([{"CPU": 0.1}] * 11, [{"CPU": 1}])) == 1


def test_a_sweep_counts_what_may_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers at most, of which one is there: two more, though each type alone would allow more."""
    monkeypatch.setattr(resources, "living_nodes", lambda: [{"CPU": 0.0}, {"CPU": 8.0}])
    monkeypatch.setattr(resources, "alive_of", lambda name: 1 if name == "a" else 0)
    monkeypatch.setattr(
        resources, "find_scaling", lambda: Scaling([NodeType("a", {"CPU": 8}, 2), NodeType("b", {"CPU": 4}, 5)], 3)
    )
    assert resources.nodes_of_cluster() == [{"CPU": 0}, {"CPU": 8}, {"CPU": 8}, {"CPU": 4}]


def test_the_file_of_this_clusters_monitor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of another cluster on the same host; and a cluster without a monitor, or one that has no file, adds
    nothing.
    """
    monkeypatch.delenv("RAY_USAGE_STATS_KUBERAY_IN_USE", raising=False)
    (tmp_path / "autoscaler").mkdir()
    script = tmp_path / "autoscaler" / "monitor.py"
    script.write_text("input()")
    types = {
        "head": {"resources": {"CPU": 0}},
        "cpu": {"resources": {"CPU": 2}, "max_workers": 7, "labels": {"a": "b"}},
    }
    (tmp_path / "up.yaml").write_text(
        yaml.safe_dump({"max_workers": 9, "head_node_type": "head", "available_node_types": types})
    )
    lines = {"127.0.0.1:5": [f"--autoscaling-config={tmp_path}/up.yaml"], "127.0.0.1:6": []}
    started = [
        subprocess.Popen([sys.executable, str(script), f"--gcs-address={address}", *more], stdin=subprocess.PIPE)
        for address, more in lines.items()
    ]
    try:
        assert resources.read_monitor("10.0.0.1:5") == Scaling([NodeType("cpu", {"CPU": 2}, 7, {"a": "b"})], 9)
        assert resources.read_monitor("127.0.0.1:6") == Scaling([], 0) == resources.read_monitor("127.0.0.1:7")
        monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
        assert resources.read_monitor("127.0.0.1:7") is None
    finally:
        for process in started:
            process.communicate(b"\n")


def test_the_node_of_an_own_ray_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may list it a moment after Ray has answered: not a cluster that holds nothing."""
    listed = iter([[], [], [{"CPU": 8.0}]])
    nodes: list[dict[str, float]] = []

    def living() -> list[dict[str, float]]:
        nodes[:] = next(listed, nodes)
        return nodes

    monkeypatch.setattr(capacity, "living_nodes", living)
    monkeypatch.setattr(capacity, "_LOOK_S", 0.001)
    capacity.wait_for_room(job_of(), None, fixed=True)
    monkeypatch.setattr(capacity, "living_nodes", list)
    monkeypatch.setattr(capacity, "_LISTED_S", 0.0)
    with pytest.raises(RunError, match="its node is not there"):
        capacity.wait_for_room(job_of(), None, fixed=True)
