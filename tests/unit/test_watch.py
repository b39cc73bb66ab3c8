"""A step that takes far longer than the others is told once, with the place of each rank; evaluations and checkpoints
are no steps.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from raytrain_nlp.paths import RunPaths, write_json
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
    monkeypatch.setattr(slow_steps, "_LEAST_S", 0.1)
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
    write_json(paths.run / "slow" / "rank-1.json", {"step": 7, "where": "backward pass, 0"})
    write_json(paths.run / "slow" / "rank-2.json", {"step": 3, "where": "of an earlier step"})
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=4):
        model(torch.ones(1, 2))
    (line,) = notices(paths)
    assert line.startswith("step 7 has taken ") and "rank 0: forward pass, 1.0, at " in line and "test_watch.py" in line
    assert line.endswith("rank 1: backward pass, 0; rank 2: elsewhere; rank 3: elsewhere.")
    assert not (paths.run / "slow").exists() and "watch" not in {thread.name for thread in threading.enumerate()}


def test_an_evaluation_is_no_late_step_and_the_step_after_it_begins_anew(
    model: torch.nn.Module, paths: RunPaths
) -> None:
    def evaluation_loop() -> None:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            time.sleep(0.01)

    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1):
        evaluation_loop()
        assert time.monotonic() - CLOCK.since < 0.3
    assert notices(paths) == []


def test_the_first_steps_may_compile(paths: RunPaths) -> None:
    CLOCK.start(0)
    assert slow_steps._limit() == slow_steps._FIRST_S
    CLOCK.done(1)
    assert CLOCK.median is None and not CLOCK.seconds, "the first step is no measure"


def test_a_watcher_that_fails_says_so_and_ends_no_run(
    model: torch.nn.Module, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_steps, "_stack", lambda frame: 1 / 0)
    with slow_steps.watched(model, paths, EventLog(paths.events), rank=0, world_size=1):
        end = time.monotonic() + 5
        while not notices(paths) and time.monotonic() < end:
            time.sleep(0.01)
    assert notices(paths) == ["slow steps are not watched any more (ZeroDivisionError: division by zero)."]
