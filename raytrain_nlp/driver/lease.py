"""The lease on a run's folder: two drivers on two hosts cannot both write, whatever the file system makes of locks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import read_json, write_json

_BEAT_S = 10.0
_STALE_S = 60.0
"""A holder that has not been heard of for this long is taken for dead."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lease while inside. The caller has the lock of this host already: a holder of the same host is therefore dead.

    Raises:
        InputError: a driver on another host holds it.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _check_free(path, mine["host"])
    write_json(path, mine)
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, mine, done), name="lease", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if _holder(path) == mine:
            path.unlink(missing_ok=True)


def _check_free(path: Path, host: str) -> None:
    holder = _holder(path)
    if holder is None or holder.get("host") == host:
        return
    age = _age(path)
    if age < _STALE_S:
        what = f"another driver is writing the run (process {holder.get('pid')} on {holder.get('host')}, last heard of {age:.0f} s ago: {path.parent})"
        raise InputError(Problem("name", what, f"Wait for it, or stop it; where it is dead already, try again in {_STALE_S - age:.0f} s."))


def _keep(path: Path, mine: dict[str, Any], done: threading.Event) -> None:
    """Say now and then that the holder lives. One that slept too long finds another in its place, and must not write any more."""
    while not done.wait(_BEAT_S):
        holder = _holder(path)
        if holder is not None and holder != mine:
            print(f"error: the run was taken over by process {holder.get('pid')} on {holder.get('host')}; this driver ends.", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError):  # the storage is away for a moment; the next beat may pass
            os.utime(path)  # its time alone: what another has written meanwhile stays


def _holder(path: Path) -> dict[str, Any] | None:
    """Who holds it; nobody where the file is missing or damaged."""
    with contextlib.suppress(InputError):
        found = read_json(path)
        return found if isinstance(found, dict) else None
    return None


def _age(path: Path) -> float:
    """Seconds since the last beat, by the clock of the storage: those of the hosts may differ."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return max(probe.stat().st_mtime - path.stat().st_mtime, 0.0)
    except FileNotFoundError:  # given back meanwhile
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)
