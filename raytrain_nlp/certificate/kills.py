"""SIGKILLs at seeded steps of a run: of a worker, and of the driver. A process is killed only where host, process id
and time of birth are those that the worker itself has noted.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from raytrain_nlp.certificate.jobs import Shape
from raytrain_nlp.certificate.runs import Driver
from raytrain_nlp.errors import RunError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.row_notes import RowNote, read_notes
from raytrain_nlp.tracking.events import read_events

_POLL_S = 0.01
_GONE_S = 120.0
_BIRTH_S = 2.0
"""By so much may two readings of a process's birth differ: the clock may have been set."""


@dataclass
class Kill:
    """One kill, planned and as it was done."""

    what: str
    """worker, or driver."""
    planned: int
    """The update in which to kill, from the seed."""
    step: int | None = None
    """The update that had begun last when the signal was sent; None where there was none to send."""
    rank: int | None = None
    """Of a worker."""
    resumed: int | None = None
    """The update of the checkpoint that the run went on from; 0: from the beginning."""
    why_not: str = ""
    """Why it could not be done."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def planned_kills(shape: Shape, seed: int) -> list[Kill]:
    """A worker between the first checkpoint and the second, and the driver between the second and the end."""
    draw = random.Random(seed)
    first, second = shape.save, 2 * shape.save
    return [
        Kill("worker", draw.randint(first + 1, second - 1) if second - first > 1 else second),
        Kill("driver", draw.randint(second + 1, max(second + 1, shape.steps - 1))),
    ]


def killed_run(
    folder: Path, job: Mapping[str, Any], shape: Shape, seed: int, say: Callable[[str], None]
) -> tuple[RunPaths, list[Kill], float]:
    """Run a job to its end through its kills; also the seconds of it.

    Raises:
        RunError: the run did not survive.
    """
    kills, draw, began = planned_kills(shape, seed), random.Random(seed), time.monotonic()
    worker, of_driver = kills
    say(f"the same run, to be killed at steps {worker.planned} and {of_driver.planned} ...")
    with Driver(folder, job) as driver:
        paths = driver.paths
        _kill_worker(driver, worker, draw)
        _told(worker, say)
        if worker.step is not None:
            _wait_for_group(driver, 2)
        _kill_driver(driver, of_driver)
        _told(of_driver, say)
        if of_driver.step is None:
            driver.finish()
    if of_driver.step is not None:
        _wait_until_gone(paths)
        say("resumed ...")
        with Driver(folder, job, "--resume") as again:
            again.finish()
    starts = [event["step"] for event, _ in read_events(paths.events) if event["kind"] in ("start", "resume")][1:]
    for kill in kills:
        if kill.step is not None and starts:
            kill.resumed = starts.pop(0)
    return paths, kills, time.monotonic() - began


def _kill_worker(driver: Driver, kill: Kill, draw: random.Random) -> None:
    last = _wait_for_step(driver, kill.planned)
    if last is None:
        kill.why_not = "the run had ended before"
        return
    here = {note.rank: note for note in _workers(driver.paths) if _is_alive(note)}
    if not here:
        kill.why_not = "no worker runs on this machine"
        return
    victim = here[draw.choice(sorted(here))]
    os.kill(victim.pid, signal.SIGKILL)
    kill.step, kill.rank = last, victim.rank


def _kill_driver(driver: Driver, kill: Kill) -> None:
    last = _wait_for_step(driver, kill.planned)
    if last is None or driver.ended():
        kill.why_not = "the run had ended before"
        return
    driver.kill()
    kill.step = last


def _wait_for_step(driver: Driver, step: int) -> int | None:
    """Wait until an update has begun; the newest that has, None where the driver ended instead."""
    while not driver.ended():
        begun = max((note.step for note in _workers(driver.paths)), default=0)
        if begun >= step:
            return begun
        time.sleep(_POLL_S)
    return None


def _wait_for_group(driver: Driver, count: int) -> None:
    """Wait until so many groups of workers have begun, or the driver has ended."""
    while not driver.ended() and len(groups_of(driver.paths)) < count:
        time.sleep(_POLL_S)


def groups_of(paths: RunPaths) -> list[list[int]]:
    """Process ids by rank of each group of workers that a run has had, oldest first."""
    return [event["pids"] for event, _ in read_events(paths.events) if event["kind"] in ("start", "resume")]


def _workers(paths: RunPaths) -> list[RowNote]:
    """The notes of the newest group."""
    groups = groups_of(paths)
    return [note for note in read_notes(paths.row_notes) if groups and note.pid in groups[-1]]


def _is_alive(note: RowNote) -> bool:
    """Does the process of a note run on this machine?"""
    if note.host != socket.gethostname():
        return False
    try:
        process = psutil.Process(note.pid)
        return abs(process.create_time() - note.born) < _BIRTH_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait_until_gone(paths: RunPaths) -> None:
    """The workers of a killed driver end by themselves.

    Raises:
        RunError: they do not.
    """
    end = time.monotonic() + _GONE_S
    while alive := sorted({note.pid for note in _workers(paths) if _is_alive(note)}):
        if time.monotonic() > end:
            raise RunError(f"{_GONE_S:.0f} s after their driver was killed these workers still run: {alive}.")
        time.sleep(0.1)


def _told(kill: Kill, say: Callable[[str], None]) -> None:
    who = f"worker {kill.rank}" if kill.rank is not None else f"the {kill.what}"
    say(f"killed {who} in step {kill.step}" if kill.step is not None else f"did not kill {who}: {kill.why_not}")
