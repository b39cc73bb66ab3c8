"""Thirty SIGKILLs in a row, drawn from a seed, of workers, whole nodes and drivers: the run ends as if there had been
none.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from head import Head, Node
from long_run import STEPS, assert_same_end, batches, begun, finish, job_of, reach, start, whole_run
from support import events

KILLS, SAVE, SEED = 30, 5, 7


class Victims:
    """The run under fire: its driver, its nodes, and what of it can be killed."""

    def __init__(self, head: Head, folder: Path, add: Any, job: dict[str, Any]):
        self._head, self._folder, self._add, self._job = head, folder, add, job
        self.run = folder / "runs" / job["name"]
        self._nodes: list[Node] = [add("n0"), add("n1")]
        self.driver = start(head, folder, job)
        self.starts = 1

    def kill(self, kind: str, draw: random.Random) -> None:
        """SIGKILL one of a kind, and put another in its place where nobody else does."""
        if kind == "worker":
            pids = [event["pids"] for event in events(self.run) if event["kind"] in ("start", "resume")][-1]
            os.kill(draw.choice(pids), signal.SIGKILL)
        elif kind == "node":
            self._nodes.pop(draw.randrange(2)).kill()
            self._nodes.append(self._add(f"n{self.starts + 1}"))
        else:
            self.driver.kill()
            self.driver.communicate(timeout=60)
            self.driver = start(self._head, self._folder, self._job, "--resume")
        self.starts += 1


@pytest.mark.timeout(3000)
def test_thirty_kills(cluster: Any, folder: Path, tmp_path: Path) -> None:
    head, add = cluster
    draw = random.Random(SEED)
    job = job_of(folder, "under-fire", 2, max_failures=KILLS)
    job["checkpoint"] = {"save_steps": SAVE}
    victims = Victims(head, folder, add, job)
    killed = []
    for number in range(KILLS):
        made = max(event.get("step", 0) for event in events(victims.run)) if number else 0
        step = min(made + draw.randint(0, 8), STEPS - 1)
        reach(victims.driver, victims.run, step, victims.starts)
        killed.append(draw.choice(("worker", "node", "driver")))
        victims.kill(killed[-1], draw)
        print(f"{number + 1:2d}: step {step}, {killed[-1]} killed", flush=True)
    result = finish(victims.driver)
    assert result["global_step"] == STEPS and {*killed} == {"worker", "node", "driver"}
    assert len(begun(victims.run)) == KILLS + 1
    seen = batches(tmp_path / "rows")
    for file in (tmp_path / "rows").iterdir():
        file.unlink()
    truth, wanted = whole_run(head, folder, tmp_path / "rows", "never-killed", 2)
    assert_same_end(victims.run, truth)
    assert seen == wanted
