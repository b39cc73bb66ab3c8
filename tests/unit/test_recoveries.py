"""What a restart took by phase, of events as runs write them; and the event of a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_runs import write_events

from raytrain_nlp.launch.failure_events import FailureEvents
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.reporting import tables
from raytrain_nlp.reporting.recoveries import read_recoveries, recovery_rows
from raytrain_nlp.run.saved_run import find_run
from raytrain_nlp.tracking.events import EventLog, read_events

Event = dict[str, Any]


def group(start: float, step: int, steps: int) -> list[Event]:
    """Workers that are there at `start`: 2 s for the libraries, 1 s for the state, half a second for a step."""

    def phase(name: str, seconds: float) -> Event:
        return {"kind": "phase", "phase": name, "time": 1000 * (start + seconds)}

    begun = {"kind": "resume" if step else "start", "step": step, "world_size": 2, "time": 1000 * (start + 0.25)}
    logs = [
        {"kind": "log", "step": step + i + 1, "metrics": {"loss": 1.0}, "time": 1000 * (start + 3.75 + i / 2)}
        for i in range(steps)
    ]
    return [phase("worker", 0), begun, phase("imports", 0.25), phase("model", 2.25), phase("train", 3.25),
            phase("first step", 3.75), *logs]  # fmt: skip


def failure(seconds: float) -> Event:
    return {"kind": "failure", "ranks": [1], "error": "killed", "time": 1000 * seconds}


DATASETS = {"kind": "datasets", "datasets": [], "time": 0}


def test_a_failed_worker_a_killed_driver_and_a_node_that_leaves(tmp_path: Path) -> None:
    events = [
        DATASETS, *group(10, 0, 11),  # until 18.75
        failure(19.75), *group(25.75, 10, 11),  # until 34.5
        {**DATASETS, "time": 60_000}, *group(67, 20, 11),
        *group(80, 31, 5),  # after a node has left, at 75.75
    ]  # fmt: skip
    run = find_run(write_events(tmp_path, "one", events))
    failed, driver, moved = read_recoveries(run)
    assert (failed.step, driver.step, moved.step) == (10, 20, 31)
    assert list(failed.seconds.values()) == pytest.approx([1, 6, 0.25, 2, 1, 0.5])
    assert list(failed.seconds) == [
        "until it was noticed", "old workers ended, new ones started", "ranks connected, checkpoint found",
        "libraries and model loaded", "state of the checkpoint loaded", "first step",
    ]  # fmt: skip
    assert "until it was noticed" not in driver.seconds and sum(driver.seconds.values()) == pytest.approx(10.75)
    assert sum(moved.seconds.values()) == pytest.approx(8)
    rows = recovery_rows([failed, driver, moved])
    assert (
        rows["restarts"] == "3"
        and rows["together"] == "10.8 s, at most 10.8 s"
        and rows["first step"].startswith("0.5")
    )
    assert "until it was noticed" in tables.restarts(["one"], [run])


def test_failures_before_the_first_step_and_in_a_row_are_one_restart(tmp_path: Path) -> None:
    first = group(10, 0, 0)[:3]  # failed while it loaded its libraries: nothing was lost
    events = [DATASETS, *first, failure(11), *group(20, 0, 3), failure(30), *group(40, 2, 0)[:4], failure(45),
              *group(50, 2, 3)]  # fmt: skip
    (one,) = read_recoveries(find_run(write_events(tmp_path, "one", events)))
    assert one.step == 2 and sum(one.seconds.values()) == pytest.approx(53.75 - 24.75)
    undisturbed = find_run(write_events(tmp_path, "two", [DATASETS, *group(10, 0, 3)]))
    assert recovery_rows(read_recoveries(undisturbed)) == {} and tables.restarts(["two"], [undisturbed]) == ""


def test_a_failure_is_an_event_beside_those_of_the_workers(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    paths.events.write_text('{"kind": "log", "st')  # the first rank is in the middle of a line
    log = EventLog(paths.events, new=False)
    FailureEvents(paths).after_exception(None, {})
    paths.events.write_text("")
    FailureEvents(paths).after_exception(
        None, {3: RuntimeError("Traceback\n  ...\nworker died"), 1: ValueError("x\ny ")}
    )
    log.write("end")
    told = [event for event, _ in read_events(paths.events)]
    assert [(event["kind"], event.get("ranks"), event.get("error")) for event in told] == [
        ("failure", [1, 3], "y"),
        ("end", None, None),
    ]
    FailureEvents(paths).after_exception(None, {0: ValueError("half a pair \ud800")})  # no text of UTF-8
    paths.events.unlink()
    paths.events.mkdir()
    FailureEvents(paths).after_exception(None, {0: ValueError("x")})  # cannot be written: the run goes on
