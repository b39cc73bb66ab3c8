"""SIGKILLs in a row, drawn from a seed, of a run's workers, nodes and drivers."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from head import Head, Node
from long_run import reach, start
from support import events


class Victims:
    """The run under fire: its driver, its nodes, and what of it can be killed."""

    def __init__(self, head: Head, folder: Path, add: Callable[[str], Node], job: dict[str, Any]):
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


def fire(victims: Victims, kills: int, steps: int, seed: int, farthest: int = 8) -> list[tuple[int, str]]:
    """Kill so many times, each at most `farthest` steps behind what was made before; the step and what was killed."""
    draw, killed = random.Random(seed), []
    for number in range(kills):
        made = max(event.get("step", 0) for event in events(victims.run)) if number else 0
        step = min(made + draw.randint(0, farthest), steps - 1)
        reach(victims.driver, victims.run, step, victims.starts)
        killed.append((step, draw.choice(("worker", "node", "driver"))))
        victims.kill(killed[-1][1], draw)
        print(f"{number + 1:2d}: step {step}, {killed[-1][1]} killed", flush=True)
    return killed
