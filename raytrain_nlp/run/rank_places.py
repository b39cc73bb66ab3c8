"""Where each rank of a run is in the code. Ranks write it into files of the run's folder; when a step hangs, these
files say which rank the others wait for.

    RUN/places/rank-N.json      written by each rank every few seconds: its step, where its main thread is, its stack
    RUN/places/rank-N.stacks    the stacks of all threads, written by Python itself if the rank's threads cannot run
    RUN/hangs/step-S/rank-N.txt the stacks of all threads of a rank in a step that hung; kept after the run

A rank that no longer writes its file does not run at all: its process is stopped, or something holds the interpreter.
Its last stack then shows where. In object storage, where each write costs, only a rank whose step is late writes its
file; a rank without a file counts as silent.
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
from raytrain_nlp.storage.untrusted import read_json_file

BEAT_S = 5.0
"""Seconds between two writes of a rank's file."""
_SILENT_S = 3 * BEAT_S
"""Seconds without a write after which a rank counts as silent."""
HOST = socket.gethostname()


class RankPlaces:
    """Writes the files of one rank, and reads those of the other ranks."""

    def __init__(self, paths: RunPaths, rank: int, world_size: int):
        self._paths, self.rank, self.world_size = paths, rank, world_size
        self._folder = paths.places
        self._next = 0.0
        self._unasked: IO[str] | None = None

    def forget(self) -> None:
        """Remove this rank's file: at the start, as it is of an earlier group of workers; at the end, so that nobody
        takes a rank that has stopped writing for a silent one.
        """
        with contextlib.suppress(OSError):
            self._mine(self.rank).unlink()

    @property
    def due(self) -> bool:
        """Is it time for the next `beat`? Never in object storage, where the ranks share no folder."""
        return self._paths.store.shared and time.monotonic() >= self._next

    def beat(self, step: int, where: str, stack: list[str], late: bool) -> None:
        """Write where this rank is. The modification time of the file says that the rank runs.

        Args:
            step: the optimizer step that runs; the first is 1.
            where: the place in the code, in words; empty between steps.
            stack: a line for each frame of the main thread, outermost first.
            late: whether the step takes much longer than expected.
        """
        self._next = time.monotonic() + BEAT_S
        try:
            self._write(step, where, stack, late)
        except OSError:  # a full disk: once the file exists, its time can be renewed without room
            with contextlib.suppress(OSError):
                os.utime(self._mine(self.rank))

    def arm(self) -> None:
        """Have `faulthandler` write the stacks of all threads unless this is called again within `_SILENT_S` seconds.
        It does not need the interpreter lock, so it works while some C code keeps all Python threads from running.
        """
        if not self._paths.store.shared:
            return
        if self._unasked is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._unasked = self._unasked_of(self.rank).open("w", encoding="utf-8")
            except OSError:  # the next call tries again
                return
        faulthandler.dump_traceback_later(_SILENT_S, file=self._unasked)

    def disarm(self) -> None:
        """Stop what `arm` has started."""
        if self._unasked is not None:
            faulthandler.cancel_dump_traceback_later()
            self._unasked.close()

    def late(self, step: int, where: str, stack: list[str]) -> None:
        """Write where this rank is in a step that hangs, and keep the stacks of all its threads in `RUN/hangs`.

        The arguments are those of `beat`.
        """
        self._write(step, where, stack, late=True)
        kept = self._kept(step, self.rank)
        with contextlib.suppress(OSError):  # a full disk: the hang is reported without the kept stacks
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(stacks_of_all_threads(), encoding="utf-8", errors="backslashreplace")
        if not self._paths.store.shared:
            self._paths.store.push(self._mine(self.rank), patience=1)
            self._paths.store.push(kept, patience=1)

    def read(self) -> list[dict[str, Any] | None]:
        """What each rank has written last, by rank; None for a rank without a file. `age` is the number of seconds by
        which a rank's file is older than this rank's.
        """
        newest = self._mine(self.rank).stat().st_mtime  # by the clock of the file system, which all ranks share
        return [self._read(rank, newest) for rank in range(self.world_size)]

    def keep_silent(self, step: int, places: list[dict[str, Any] | None]) -> None:
        """Keep the last stacks of the silent ranks in `RUN/hangs`.

        Args:
            places: what `read` has returned.
        """
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
        """Remove the files of all ranks in `RUN/places`; `RUN/hangs` stays."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unasked_of(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.stacks"

    def _mine(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def _kept(self, step: int, rank: int) -> Path:
        return self._paths.hangs / f"step-{step}" / f"rank-{rank}.txt"

    def _write(self, step: int, where: str, stack: list[str], late: bool) -> None:
        """Replace the file atomically, but without `fsync`: after a crash of the machine nobody needs it."""
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
            said = read_json_file(path)
            return {**said, "age": max(newest - path.stat().st_mtime, 0.0)}
        return None


def _read_text(path: Path) -> str:
    """The text of a file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    return ""


def is_silent(place: dict[str, Any]) -> bool:
    """Has a rank stopped writing its file? One that has written that its step is late does not count, because in object
    storage it writes only once.
    """
    return bool(place["age"] > _SILENT_S and not place["late"])


def all_silent(folder: Path) -> tuple[float, list[str]] | None:
    """What the driver needs to find out that no rank of a group runs any more.

    Args:
        folder: `RUN/places`.

    Returns:
        The newest modification time of the ranks' files (seconds since the epoch), and a line for each rank that says
        where it was. None if the process of a rank has ended, or if a rank runs on another host: then the remaining
        ranks find out themselves.
    """
    import psutil

    written, words = [], []
    try:
        for file in sorted(folder.glob("rank-*.json"), key=lambda path: int(path.stem.partition("-")[2])):
            said = read_json_file(file)
            if said["host"] != HOST or not psutil.pid_exists(said["pid"]):
                return None
            written.append(file.stat().st_mtime)
            words.append(f"rank {file.stem.partition('-')[2]}: {said['where'] or 'between steps'}")
    except (OSError, ValueError, KeyError):  # the file is being removed, or is of another version
        return None
    return (max(written), words) if written else None


def describe(step: int, places: list[dict[str, Any] | None]) -> list[str]:
    """Where each rank is, a phrase for each.

    Args:
        step: the step that hangs.
        places: what `RankPlaces.read` has returned.
    """
    return [_words(step, place) for place in places]


def suspects(places: list[dict[str, Any] | None]) -> list[int]:
    """The ranks for which the others probably wait: the silent ones, if there are any. Else the one rank that is at a
    place of its own, if there is exactly one and the group has more than two ranks.
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
    """A line for each frame. Source files are not read, because they may be on a file system that hangs."""
    return [f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" for frame in frames]


def stacks_of_all_threads() -> str:
    """The stacks of all threads of this process as text, the main thread's first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    by_thread = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    parts = [[f"thread {names.get(ident, ident)}:", *stack_lines(frames_of(frame))] for ident, frame in by_thread]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"
