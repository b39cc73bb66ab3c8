"""No thread of this package ends without a word: what it raises is told once, and it goes on or its end is raised where
it is waited for.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import StorageError
from raytrain_nlp.launch import elastic
from raytrain_nlp.launch.elastic import ElasticFit
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.run.observer import Observer, followed
from raytrain_nlp.storage import uploader
from raytrain_nlp.storage.uploader import Courier
from raytrain_nlp.tracking.events import EventLog

ERRORS = [
    OSError(28, "No space left on device"),
    sqlite3.OperationalError("database is locked"),
    StorageError("s3://b does not answer"),
    KeyError("x"),
]


def until(met: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def failing(error: Exception, times: int) -> tuple[Callable[..., None], list[float]]:
    """A function that raises so many times, and when it was called."""
    calls: list[float] = []

    def call(*_: Any) -> None:
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error

    return call, calls


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_courier_outlives_what_its_node_or_the_storage_raises(error: Exception) -> None:
    told: list[str] = []
    carry, calls = failing(error, 3)
    with Courier(carry, told.append, every_s=0.01):
        until(lambda: len(calls) > 5, "the courier does not carry any more")
    assert len(told) == 1 and str(error).strip("'") in told[0] and "it is tried again" in told[0]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_cannot_be_carried_at_the_end_is_raised_as_one_kind(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "_PAUSE_S", 0.01, raising=False)
    carry, calls = failing(error, 1_000)
    with (
        pytest.raises(StorageError, match="No space|locked|does not answer|KeyError"),
        Courier(carry, lambda line: None, every_s=60),
    ):
        pass
    for_a_moment, calls = failing(error, 2)
    if not isinstance(error, StorageError):  # which has been tried for minutes
        with Courier(for_a_moment, lambda line: None, every_s=60):
            pass
        assert len(calls) == 3


JOB = {
    "name": "run", "task": {"type": "causal-lm"}, "model": {"name_or_path": "x"}, "data": {"train": "x.txt"},
    "workers": {"num_workers": 2, "min_workers": 1, "resize_interval_s": 0.01, "use_gpu": False},
}  # fmt: skip


@pytest.fixture
def watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, Any]], tuple[Any, list[str], RunPaths]]]:
    """An elastic group of one worker that trains, and what is said of it."""
    monkeypatch.setattr(elastic, "_POLL_S", 0.01)
    monkeypatch.setattr(elastic, "bundles_of", lambda job: [{"CPU": 1}] * job.workers.num_workers)
    monkeypatch.setattr(elastic, "left_over", lambda bundles, nodes: bundles[len(nodes) :])
    paths, said = RunPaths(tmp_path, "run"), []
    paths.run.mkdir()
    fit, job = ElasticFit(say=said.append), load_job(JOB)
    replaced = threading.Event()

    def start(nodes: dict[str, Any]) -> Any:
        for name, function in nodes.items():
            monkeypatch.setattr(elastic, name, function)
        return fit._watched(job, 1, paths, replaced), said, paths

    yield start


def test_a_failed_question_to_ray_does_not_end_growth(watching: Any) -> None:
    calls: list[int] = []

    def free_nodes() -> list[dict[str, float]]:
        calls.append(1)
        if len(calls) <= 3:
            raise RuntimeError("the head does not answer\nand more")
        return [{"CPU": 1}]

    group, said, paths = watching({"living_nodes": lambda: [{"CPU": 1}], "free_nodes": free_nodes})
    with group:
        EventLog(paths.events).write("start", step=0)
        until(lambda: paths.move.exists(), "growth has ended")
    assert len(said) == 1 and "RuntimeError: the head does not answer" in said[0] and "tried again" in said[0]
    assert "there is room for 2 workers" in read_json(paths.move)["reason"]


def test_a_question_that_always_fails_ends_with_the_group(watching: Any) -> None:
    def living_nodes() -> list[dict[str, float]]:
        raise AttributeError("renamed")

    group, said, paths = watching({"living_nodes": living_nodes, "free_nodes": living_nodes})
    with group:
        until(lambda: said, "nobody is told")
    assert (
        not [thread for thread in threading.enumerate() if thread.name == "elastic"]
        and len(said) == 1
        and not paths.move.exists()
    )


def test_an_observer_that_fails_is_told_and_hears_the_rest(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    heard, told = [], []

    class Odd(Observer):
        def event(self, event: dict[str, Any]) -> None:
            if event["number"] == 1:
                raise ValueError("cannot show this")
            heard.append(event["number"])

        def progress(self, progress: dict[str, Any]) -> None:
            heard.append("progress")

        def warn(self, text: str) -> None:
            told.append(text)
            raise BrokenPipeError

    with followed(paths, Odd()):
        events = EventLog(paths.events)
        for number in range(3):
            events.write("x", number=number)
        until(lambda: 2 in heard, "the events behind it are not heard")
        paths.progress.write_text("{")
        events.write("x", number=3)
    assert (
        [number for number in heard if number != "progress"] == [0, 2, 3]
        and len(told) == 1
        and "ValueError: cannot show this" in told[0]
    )


def test_progress_of_a_group_that_has_ended_is_not_passed(tmp_path: Path) -> None:
    """Neither that of a driver before, nor that of a group of this driver's, which wrote it a moment before."""
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    heard: list[Any] = []

    class Listening(Observer):
        def event(self, event: dict[str, Any]) -> None:
            heard.append(event["phase"])

        def progress(self, progress: dict[str, Any]) -> None:
            heard.append(progress["step"])

    write_json(paths.progress, {"step": 52})
    with followed(paths, Listening()):
        events = EventLog(paths.events)
        events.write("phase", phase="worker")
        until(lambda: heard == ["worker"], "the group's first event")
        write_json(paths.progress, {"step": 41})
        until(lambda: 41 in heard, "the group's progress")
        events.write("phase", phase="worker")
        until(lambda: heard[-1] == "worker", "the next group")
        before = len(heard)
        events.write("phase", phase="imports")
        until(lambda: heard[-1] == "imports", "its next event")
        assert heard[before:] == ["imports"]
        write_json(paths.progress, {"step": 40})
        until(lambda: heard[-1] == 40, "its progress")


def test_a_private_part_of_ray_that_was_renamed_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray._private import state

    from raytrain_nlp.cluster import capacity, preemption, resources

    class Renamed:
        pass

    monkeypatch.setattr("raytrain_nlp.host.once._said", set())
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(state, "state", Renamed())
    monkeypatch.delattr("ray._raylet.GcsClient")
    for _ in range(3):
        assert (
            preemption.draining_nodes() == {} and resources._reported() is None and capacity._is_refused(None) is False
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(f"Ray {ray.__version__} has changed" in line for line in lines)
    assert (
        "nodes that are to go are not noticed" in lines[0]
        and "autoscaler reports" in lines[1]
        and "start_timeout_s" in lines[2]
    )


def test_a_head_that_is_away_is_no_news(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import ray
    from ray._private import state

    from raytrain_nlp.cluster.preemption import draining_nodes

    class Away:
        def get_draining_nodes(self) -> dict[str, int]:
            raise ray.exceptions.RaySystemError("gone")

    monkeypatch.setattr("raytrain_nlp.host.once._said", set())
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(state, "state", Away())
    assert draining_nodes() == {} and not capsys.readouterr().err
