"""Where each rank of a run is, in files of the run's folder: what a step that does not end is told by.

    RUN/places/rank-N.json      of each rank, renewed every few seconds: the step, where its main thread is, its stack
    RUN/hangs/step-S/rank-N.txt the stacks of all threads of a rank in a step that did not end; kept

A rank whose file is renewed no more does not run at all: its process is stopped, or something holds the interpreter.
Its last stack is then the one to look at. In object storage a file is written only by a rank that is late, as every
write costs; a rank without one is silent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

from raytrain_nlp.paths import RunPaths

BEAT_S = 5.0
"""Seconds between two writes of a rank."""
_SILENT_S = 3 * BEAT_S
HOST = socket.gethostname()


class RankPlaces:
    """The files of one rank, and those of the others."""

    def __init__(self, paths: RunPaths, rank: int, world_size: int):
        self._paths, self.rank, self.world_size = paths, rank, world_size
        self._folder = paths.places
        self._next = 0.0
        self._unasked: IO[str] | None = None

    def forget(self) -> None:
        """What this rank has written: of the group before, or where it will write no more, so that nobody takes it for
        one that does not answer.
        """
        with contextlib.suppress(OSError):
            self._mine(self.rank).unlink()

    @property
    def due(self) -> bool:
        """Is it time for a beat? Never where ranks do not share the folder."""
        return self._paths.store.shared and time.monotonic() >= self._next

    def beat(self, step: int, where: str, stack: list[str], late: bool) -> None:
        """Say where this rank is, and that it still runs."""
        self._next = time.monotonic() + BEAT_S
        try:
            self._write(step, where, stack, late)
        except OSError:  # a full disk: that this rank runs needs no room, once the file is there
            with contextlib.suppress(OSError):
                os.utime(self._mine(self.rank))

    def arm(self) -> None:
        """Have Python itself write the stacks of this process, without the interpreter, unless this is called again
        soon: a thread that is kept from running cannot look.
        """
        if not self._paths.store.shared:
            return
        if self._unasked is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._unasked = self._unasked_of(self.rank).open("w", encoding="utf-8")
            except OSError:  # it is tried again
                return
        faulthandler.dump_traceback_later(_SILENT_S, file=self._unasked)

    def disarm(self) -> None:
        """No stacks are written any more."""
        if self._unasked is not None:
            faulthandler.cancel_dump_traceback_later()
            self._unasked.close()

    def late(self, step: int, where: str, stack: list[str]) -> None:
        """Say where this rank is in a step that does not end; its stacks are kept."""
        self._write(step, where, stack, late=True)
        kept = self._kept(step, self.rank)
        with contextlib.suppress(OSError):  # a disk that is full: it is told all the same
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(stacks_of_all_threads(), encoding="utf-8", errors="backslashreplace")
        if not self._paths.store.shared:
            self._paths.store.push(self._mine(self.rank), patience=1)
            self._paths.store.push(kept, patience=1)

    def read(self) -> list[dict[str, Any] | None]:
        """What each rank has said last, and how many seconds before this one (`age`); None where that is nothing."""
        newest = self._mine(self.rank).stat().st_mtime  # by the clock of the file system, which all ranks share
        return [self._read(rank, newest) for rank in range(self.world_size)]

    def keep_silent(self, step: int, places: list[dict[str, Any] | None]) -> None:
        """Keep the last stacks of the ranks that do not answer."""
        for rank, place in enumerate(places):
            kept = self._kept(step, rank)
            if place and is_silent(place) and not kept.exists():
                lines = [f"does not answer; its main thread {place['age']:.0f} s ago:", *place["stack"]]
                if written := _read_text(self._unasked_of(rank)):
                    lines = ["does not answer; its threads, the newest call first:", written.rstrip(), "", *lines]
                with contextlib.suppress(OSError):
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")

    def remove(self) -> None:
        """Remove what is not kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unasked_of(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.stacks"

    def _mine(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _kept(self, step: int, rank: int) -> Path:
        return self._paths.hangs / f"step-{step}" / f"rank-{rank}.txt"

    def _write(self, step: int, where: str, stack: list[str], late: bool) -> None:
        """As a whole, but not through to the disk: what a crash of the machine takes is of no use after it."""
        path = self._mine(self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        said = {"step": step, "where": where, "late": late, "stack": stack, "host": HOST, "pid": os.getpid()}
        part.write_text(json.dumps(said), encoding="utf-8")
        part.replace(path)

    def _read(self, rank: int, newest: float) -> dict[str, Any] | None:
        path = self._mine(rank)
        if not self._paths.store.shared and rank != self.rank:
            self._paths.store.refetch(path, patience=1)
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(path.read_text(encoding="utf-8"))
            return {**said, "age": max(newest - path.stat().st_mtime, 0.0)}
        return None


def _read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    return ""


def is_silent(place: dict[str, Any]) -> bool:
    """Has a rank that writes every few seconds stopped writing?"""
    return bool(place["age"] > _SILENT_S and not place["late"])


def all_silent(folder: Path) -> tuple[float, list[str]] | None:
    """Of ranks that all run, or are stopped, on this machine: when the last of them wrote, in seconds, and where each
    was. None of ranks that have ended, or some of which run elsewhere: those have each other to find out.
    """
    import psutil

    written, words = [], []
    try:
        for file in sorted(folder.glob("rank-*.json"), key=lambda path: int(path.stem.partition("-")[2])):
            said = json.loads(file.read_text(encoding="utf-8"))
            if said["host"] != HOST or not psutil.pid_exists(said["pid"]):
                return None
            written.append(file.stat().st_mtime)
            words.append(f"rank {file.stem.partition('-')[2]}: {said['where'] or 'between steps'}")
    except (OSError, ValueError, KeyError):  # just being removed, or written by another version
        return None
    return (max(written), words) if written else None


def describe(step: int, places: list[dict[str, Any] | None]) -> list[str]:
    """Where each rank is, in words."""
    return [_words(step, place) for place in places]


def suspects(places: list[dict[str, Any] | None]) -> list[int]:
    """The ranks that others may be waiting for: those that do not answer; else the one that is where no other is,
    while all others are at one place.
    """
    if silent := [rank for rank, place in enumerate(places) if place is None or is_silent(place)]:
        return silent
    wheres = [place["where"] if place else "" for place in places]
    alone = [rank for rank, where in enumerate(wheres) if wheres.count(where) == 1]
    return alone if len(alone) == 1 and len(places) > 2 else []


def _words(step: int, place: dict[str, Any] | None) -> str:
    if place is None:
        return "does not answer"
    if is_silent(place):
        return (
            f"does not answer (its process is stopped, or something holds its interpreter); {place['age']:.0f} s ago: "
            f"{place['where'] or 'elsewhere'}"
        )
    return place["where"] if place["step"] == step and place["where"] else "elsewhere"


def frames_of(frame: FrameType | None) -> list[FrameType]:
    """The frames of a thread, outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def stack_lines(frames: list[FrameType]) -> list[str]:
    """A line for each frame; no source is read, which may lie on a file system that hangs."""
    return [f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" for frame in frames]


def stacks_of_all_threads() -> str:
    """The stacks of this process, the main thread's first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    by_thread = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    parts = [[f"thread {names.get(ident, ident)}:", *stack_lines(frames_of(frame))] for ident, frame in by_thread]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"
