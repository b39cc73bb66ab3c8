"""The driver's connection to Ray, what dead controllers have left in it, and workers that stay from run to run; with
Ray's answers played.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.util.placement_group
from support import plain_job

from raytrain_nlp.cluster import connection, placement_groups
from raytrain_nlp.cluster.connection import Connection, connect_ahead, connected_briefly
from raytrain_nlp.cluster.placement_groups import free_groups_of, free_orphans
from raytrain_nlp.config import load_job
from raytrain_nlp.errors import RunError
from raytrain_nlp.launch import worker_pool
from raytrain_nlp.launch.elastic import ElasticFit
from raytrain_nlp.launch.fit import Fit
from raytrain_nlp.launch.worker_pool import WorkerPool
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.stop_request import ask_to_move

# the connection


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to Ray, without any."""
    heard: list[str] = []
    monkeypatch.setattr(connection, "is_connected", lambda: False)
    monkeypatch.setattr(connection, "is_local", lambda: False)
    monkeypatch.setattr(connection, "boot_processes", lambda job: heard.append("boot"))
    monkeypatch.setattr("raytrain_nlp.cluster.capacity.ask_for_room", lambda job: heard.append("ask"))
    monkeypatch.setattr(
        "raytrain_nlp.cluster.capacity.wait_for_room", lambda job, say, fixed, asked: heard.append("wait")
    )
    monkeypatch.setattr(ray, "init", lambda **options: heard.append(f"init {options['address']}"))
    monkeypatch.setattr(ray, "shutdown", lambda: heard.append("shutdown"))
    return heard


def test_a_cluster_is_connected_to_once_asked_for_nodes_and_left(tmp_path: Path, heard: list[str]) -> None:
    job = load_job(plain_job(tmp_path, "x"))
    with connect_ahead(job, say=lambda line: None) as connected:
        assert heard == ["init auto", "ask"], "nodes are asked for before the data are prepared"
        connected()
        connected()
    assert heard == ["init auto", "ask", "wait", "boot", "shutdown"]
    heard.clear()
    with connect_ahead(job) as connected:
        connected()
    assert heard == ["init auto", "wait", "boot", "shutdown"], "without anyone to tell, no nodes are asked for"


def test_an_error_while_connected_leaves_no_connection_behind(tmp_path: Path, heard: list[str]) -> None:
    with pytest.raises(KeyError), connect_ahead(load_job(plain_job(tmp_path, "x"))):
        raise KeyError("bad data")
    assert heard == ["init auto", "shutdown"]


def test_a_ray_that_the_user_has_connected_stays_connected(
    tmp_path: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook would lose its actors with the first `train`."""
    monkeypatch.setattr(connection, "is_connected", lambda: True)
    connected = Connection(load_job(plain_job(tmp_path, "x")))
    connected()
    connected.close()
    with connected_briefly():
        pass
    assert heard == ["wait", "boot"]


def test_a_cluster_that_does_not_answer_is_one_line(
    tmp_path: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("nobody there.\nand a page of advice")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    line = r"^the cluster at 10.0.0.1:6379 does not answer: nobody there\. Try again when the machine is less busy, or look into Ray's logs\.$"  # noqa: E501
    with pytest.raises(RunError, match=line), connected_briefly():
        raise AssertionError("is not reached")
    with pytest.raises(RunError, match=line), connect_ahead(load_job(plain_job(tmp_path, "x"))):
        raise AssertionError("is not reached")


@pytest.mark.parametrize(
    ("use_gpu", "given", "hidden"),
    [(False, None, True), (True, None, False), (False, {"CUDA_VISIBLE_DEVICES": "3"}, False)],
)
def test_all_processes_of_a_job_without_gpus_see_none(
    tmp_path: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch, use_gpu: bool, given: Any, hidden: bool
) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **found: options.update(found))
    monkeypatch.setattr(connection, "hidden_gpus", lambda use_gpu: contextlib.nullcontext())
    if given:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": given}}))
    with connect_ahead(load_job(plain_job(tmp_path, "x", workers={"use_gpu": use_gpu}))):
        pass
    assert ("CUDA_VISIBLE_DEVICES" in options.get("runtime_env", {}).get("env_vars", {})) is hidden


# placement groups


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Groups with their creators, actors with their state, and what is removed."""
    found: dict[str, Any] = {"groups": [], "actors": {}, "removed": []}
    monkeypatch.setattr(placement_groups, "placement_groups_of_this_job", lambda: found["groups"])
    monkeypatch.setattr(placement_groups, "actor_entry", lambda actor: found["actors"].get(actor))
    monkeypatch.setattr(
        sys.modules["ray.util.placement_group"],
        "remove_placement_group",
        lambda group: found["removed"].append(group.id.hex()),
    )
    yield found


ONE, TWO, THREE = ("1" * 36, "2" * 36, "3" * 36)


def test_what_dead_controllers_have_placed_is_freed_and_nothing_else(groups: dict[str, Any]) -> None:
    """Resources of a run that has ended would be kept from the next one; those of a run that goes on, or of the user's
    own actors, must stay.
    """
    groups["groups"] = [(ONE, "dead"), (TWO, "alive"), (THREE, "other")]
    groups["actors"] = {
        "dead": {"State": "DEAD", "ActorClassName": "TrainController"},
        "alive": {"State": "ALIVE", "ActorClassName": "TrainController"},
        "other": {"State": "DEAD", "ActorClassName": "OfTheUser"},
    }
    free_orphans()
    assert groups["removed"] == [ONE]


def test_a_controller_that_is_killed_may_ask_until_it_is_dead(
    groups: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["ALIVE", "ALIVE", "DEAD"])
    monkeypatch.setattr(
        placement_groups, "actor_entry", lambda actor: {"State": next(states), "ActorClassName": "TrainController"}
    )
    monkeypatch.setattr(
        placement_groups,
        "time",
        SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: groups["groups"].append((TWO, "it"))),
    )
    groups["groups"] = [(ONE, "it"), (THREE, "another")]
    free_groups_of("it")
    assert groups["removed"] == [ONE, TWO, TWO]


def test_one_that_does_not_die_is_not_waited_for_for_ever(
    groups: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        placement_groups,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + 1)),
    )
    groups["groups"], groups["actors"] = [(ONE, "it")], {"it": {"State": "ALIVE", "ActorClassName": "TrainController"}}
    free_groups_of("it")
    assert groups["removed"] == [ONE] and clock.now < 10


# workers that stay


class Cluster(SimpleNamespace):
    """The mailbox, and the groups of workers that were started: each answers what `outcomes` says next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(started=[], ended=0, outcomes=[], stopped=[])
        cluster = self

        class Fit:
            def __init__(self, loop: Any) -> None:
                self.over = threading.Event()

            def run(self, job: Any, config: dict[str, Any], paths: Any) -> dict[str, Any]:
                cluster.started.append(job.workers.num_workers)
                self.over.wait(60)
                return {}

            def abort(self) -> None:
                cluster.ended += not self.over.is_set()
                self.over.set()

        monkeypatch.setattr(worker_pool, "Fit", Fit)
        monkeypatch.setattr(ray, "get", lambda value: value)
        monkeypatch.setattr(ray, "wait", lambda results, timeout: (results, []))
        self.mailbox = SimpleNamespace(
            put=SimpleNamespace(remote=lambda pool, spec: 0),
            result=SimpleNamespace(remote=lambda pool, number: cluster.outcomes.pop(0)),
            stop=SimpleNamespace(remote=lambda pool, number: cluster.stopped.append(number)),
        )

    def answer(self, outcome: dict[str, Any], memory: int = 10**9, restarts: int = 0) -> None:
        self.outcomes.append({"outcome": outcome, "memory": memory, "restarts": restarts})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def run(pool: WorkerPool, tmp_path: Path, **workers: Any) -> dict[str, Any]:
    return pool.turn()(load_job(plain_job(tmp_path, "x", workers=workers)), "spec", RunPaths(tmp_path, "x"))


def test_runs_share_workers_as_long_as_these_are_as_new(tmp_path: Path, cluster: Cluster) -> None:
    """Kept on after an error, a restart or a leak they would spoil the next trial; replaced each time they would cost
    the seconds that a pool saves.
    """
    pool = WorkerPool(cluster.mailbox)
    good = {"result": {"metrics": {"eval_loss": 1.0}}}
    for _ in range(3):
        cluster.answer(good)
        assert run(pool, tmp_path) == good
    assert len(cluster.started) == 1 and cluster.ended == 0
    cluster.answer({"error": RunError("bad rows")})
    run(pool, tmp_path)
    for memory, restarts in ((10**9, 1), (10**9, 0), (4 * 10**9, 0), (10**9, 0)):
        cluster.answer(good, memory, restarts)
        run(pool, tmp_path)
    assert len(cluster.started) == 4 and cluster.ended == 3, (
        "after the error, after the restart, after the memory that did not come back"
    )
    cluster.answer(good)
    run(pool, tmp_path, num_workers=1)
    assert cluster.started[-1] == 1 and len(cluster.started) == 5, "a job of another shape has workers of its own"
    pool.close()
    pool.close()
    assert cluster.ended == 5


def test_a_run_whose_node_leaves_goes_on_with_other_workers(tmp_path: Path, cluster: Cluster) -> None:
    pool, good = WorkerPool(cluster.mailbox), {"result": {"metrics": {}}}
    cluster.answer({"result": {"moved": True}})
    cluster.answer(good)
    assert run(pool, tmp_path) == good and len(cluster.started) == 2
    pool.close()


@pytest.mark.parametrize("launch", [Fit, ElasticFit, WorkerPool])
def test_a_run_that_is_to_end_with_its_checkpoint_gets_no_other_workers(
    launch: Any, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would read the same request, make one step, and end; and the next ones, too."""
    job, paths = load_job(plain_job(tmp_path, "x", workers={"num_workers": 2})), RunPaths(tmp_path, "x")
    paths.run.mkdir()
    ask_to_move(paths, "stopped", then_end=True)
    moved, groups = {"result": {"moved": True}}, []
    if launch is WorkerPool:
        cluster.answer(moved)
        assert run(WorkerPool(cluster.mailbox), tmp_path) == moved and len(cluster.started) == 1
        return
    monkeypatch.setattr(launch, "run", lambda self, job, config, paths, *_: groups.append(1) or moved)
    monkeypatch.setattr(ElasticFit, "_size", lambda self, job: 2)
    monkeypatch.setattr(ElasticFit, "_watched", lambda self, *_: contextlib.nullcontext())
    assert launch()(job, "spec", paths) == moved and len(groups) == 1


def test_a_run_that_was_stopped_is_no_result_and_its_workers_stay(tmp_path: Path, cluster: Cluster) -> None:
    pool, job = WorkerPool(cluster.mailbox), load_job(plain_job(tmp_path, "x"))
    cluster.answer({"result": {"stopped": True}})
    with pytest.raises(RunError, match="stopped"):
        run(pool, tmp_path)
    turn = pool.turn()
    turn.abort()
    with pytest.raises(RunError, match="stopped"):
        turn(job, "spec", RunPaths(tmp_path, "x"))
    assert len(cluster.started) == 1 and cluster.ended == 0
    pool.close()
