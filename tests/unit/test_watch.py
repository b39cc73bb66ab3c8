"""A step that takes far longer than the others is told once, with the place of each rank; evaluations and checkpoints
are no steps.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.run.rank_places import RankPlaces, all_silent, suspects
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker import slow_steps
from raytrain_nlp.worker.progress import CLOCK


class Stuck(torch.nn.Module):
    """A layer whose forward waits for another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.over: Callable[[], bool] = lambda: True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        end = time.monotonic() + 20
        while not self.over() and time.monotonic() < end:
            time.sleep(0.01)
        return x


@pytest.fixture
def model() -> Iterator[torch.nn.Module]:
    """In its sixth step; steps take 1 ms."""
    CLOCK.start(0)
    for step in range(1, 7):
        CLOCK.done(step)
    yield torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(Stuck()))
    CLOCK.start(0)


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    monkeypatch.setattr(slow_steps, "_POLL_S", 0.02)
    monkeypatch.setattr(slow_steps, "_MORE_S", 0.1)
    monkeypatch.setattr(slow_steps, "_JOIN_S", 0.05)
    (tmp_path / "run").mkdir()
    return RunPaths(tmp_path, "run")


def notices(paths: RunPaths) -> list[str]:
    return [json.loads(line)["text"] for line in paths.events.read_text().splitlines()] if paths.events.exists() else []


def test_a_late_step_is_told_once_with_the_place_of_each_rank(model: torch.nn.Module, paths: RunPaths) -> None:
    seen = []

    def over() -> bool:
        seen.extend(notices(paths)[len(seen) :])
        return bool(seen) and time.monotonic() > until + 0.3

    until = time.monotonic()
    model[1][0].over = over
    say(paths, 1, step=7, where="backward pass, 0", late=True)
    say(paths, 2, step=3, where="of an earlier step", late=True)
    say(paths, 4, step=7, where="forward pass", late=False, age=60)
    (paths.run / "places" / "rank-4.stacks").write_text('File "code.py", line 3 in stuck\n')
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=5):
        model(torch.ones(1, 2))
    (line,) = notices(paths)
    assert line.startswith("step 7 has taken ") and "rank 0: forward pass, 1.0, at " in line and "test_watch.py" in line
    assert "rank 1: backward pass, 0; rank 2: elsewhere; rank 3: does not answer; rank 4: does not answer (" in line
    assert line.endswith("60 s ago: forward pass.")
    assert not (paths.run / "places").exists() and "watch" not in {thread.name for thread in threading.enumerate()}
    kept = paths.hangs / "step-7"
    assert "test_watch.py" in (kept / "rank-0.txt").read_text() and "in forward" in (kept / "rank-0.txt").read_text()
    assert "code.py" in (kept / "rank-4.txt").read_text()
    assert (kept / "rank-4.txt").read_text().endswith("a.py:1 in last\n") and not (kept / "rank-1.txt").exists()


def say(paths: RunPaths, rank: int, age: float = 0, **said: Any) -> None:
    """Write what another rank says."""
    file = paths.run / "places" / f"rank-{rank}.json"
    write_json(file, {"stack": ["  a.py:1 in last"], **said})
    os.utime(file, (time.time() - age,) * 2)


def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(slow_steps.os, "_exit", codes.append)
    monkeypatch.setattr(slow_steps, "_HUNG_S", 0.3)
    return codes


@pytest.mark.parametrize(("rank", "silent", "speaks"), [(0, 1, True), (1, 0, True), (1, 2, False)])
def test_of_a_hung_step_the_ranks_that_answer_leave_and_the_first_of_them_says_why(
    model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, rank: int, silent: int, speaks: bool
) -> None:
    codes = left(monkeypatch)
    model[1][0].over = lambda: bool(codes)
    for other in {0, 1, 2} - {rank}:
        say(paths, other, step=7, where="backward pass", late=other != silent, age=60 if other == silent else 0)
    with slow_steps.watched(model, paths, EventLog(paths.events if rank == 0 else None), rank, world_size=3):
        model(torch.ones(1, 2))
    assert codes[0] == slow_steps._EXIT
    told = read_json(paths.failure)
    if speaks:
        assert f"step 7 hangs: rank {silent}: does not answer" in told["error"] and told["hang"] and not told["again"]
        assert "rank-" not in told["error"] and "hangs/step-7" in told["error"]
        assert any(line.endswith("The workers are ended.") for line in notices(paths))
    else:
        assert told is None and notices(paths) == []


def test_a_step_that_hangs_with_the_same_words_again_ends_the_run(
    model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for again in (False, True):
        codes = left(monkeypatch)
        model[1][0].over = lambda codes=codes: bool(codes)  # type: ignore[misc]
        say(paths, 1, step=7, where="update", late=True)
        with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=2):
            model(torch.ones(1, 2))
        assert read_json(paths.failure)["again"] is again


def test_a_job_may_have_no_hang_ended(model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = left(monkeypatch)
    until = time.monotonic() + 0.8
    model[1][0].over = lambda: time.monotonic() > until
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1, hang_timeout_s=0):
        model(torch.ones(1, 2))
    assert not codes and len(notices(paths)) == 1


@pytest.mark.parametrize(
    ("asked", "median", "late", "hung"),
    [(None, 1.0, 23, 300), (None, 30.0, 110, 600), (60, 1.0, 23, 60), (1, 1.0, 23, 29), (0, 1.0, 23, None)],
)
def test_the_limits_follow_the_median(asked: float | None, median: float, late: float, hung: float | None) -> None:
    CLOCK.start(0)
    CLOCK.seconds.extend([median] * 5)
    assert slow_steps._limit() == late and slow_steps._hung_limit(asked) == hung
    CLOCK.start(0)


def test_who_others_wait_for() -> None:
    here, there = ({"where": where, "late": True, "age": 0.0, "step": 7} for where in ("here", "there"))
    assert suspects([here, there, here]) == [1] and suspects([here, there]) == [] and suspects([here, here]) == []
    assert suspects([here, None]) == [1] and suspects([{**here, "late": False, "age": 60.0}, there]) == [0]


def test_an_evaluation_is_no_late_step_and_the_step_after_it_begins_anew(
    model: torch.nn.Module, paths: RunPaths
) -> None:
    def evaluation_loop() -> None:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            time.sleep(0.01)

    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1):
        began = time.monotonic()
        evaluation_loop()
        assert CLOCK.since > began
    assert notices(paths) == []


def test_the_first_steps_may_compile(paths: RunPaths) -> None:
    CLOCK.start(0)
    assert slow_steps._limit() == slow_steps._FIRST_S
    CLOCK.done(1)
    assert CLOCK.median is None and not CLOCK.seconds, "the first step is no measure"


def test_a_watcher_that_fails_says_so_and_ends_no_run(
    model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_steps, "frames_of", lambda frame: 1 / 0)
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1):
        end = time.monotonic() + 5
        while not notices(paths) and time.monotonic() < end:
            time.sleep(0.01)
    assert notices(paths) == ["slow steps are not watched any more (ZeroDivisionError: division by zero)."]


def test_a_rank_on_a_full_disk_still_answers(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file gets a new time; without one nothing ends."""
    places = RankPlaces(paths, 0, 1)
    places.beat(1, "forward pass", [], late=False)
    file = paths.places / "rank-0.json"
    os.utime(file, (1, 1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    places.beat(2, "forward pass", [], late=False)
    assert time.time() - file.stat().st_mtime < 60 and json.loads(file.read_text())["step"] == 1
    file.unlink()
    places.beat(3, "forward pass", [], late=False)


def test_a_watcher_that_has_ended_is_not_taken_for_a_rank_that_does_not_answer(
    model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(paths, 0, step=7, where="forward pass", late=False, age=900)
    monkeypatch.setattr(slow_steps, "frames_of", lambda frame: 1 / 0)
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1):
        end = time.monotonic() + 5
        while not notices(paths) and time.monotonic() < end:
            time.sleep(0.01)
        assert all_silent(paths.places) is None
