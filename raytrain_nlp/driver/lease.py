"""The lease on a run's folder: two drivers on two hosts cannot both write, whatever the file system makes of locks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import InputError, Problem, StorageError
from raytrain_nlp.paths import read_json, write_json
from raytrain_nlp.remote.mirror import delete, modified, refetch, write_marker
from raytrain_nlp.remote.places import remote_of, shown

_BEAT_S = 10.0
_STALE_S = 60.0
"""A holder that has not been heard of for this long is taken for dead."""
_SETTLE_S = 1.0
_REQUEST_S = 20.0
"""How long one request to object storage is tried again."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lease while inside. The caller has the lock of this host already: a holder of the same host is therefore dead.

    Raises:
        InputError: a driver on another host holds it.
    """
    mine = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    _check_free(path, mine)
    _write(path, mine)
    if remote_of(path):  # no lock of this host keeps another one from doing the same this moment
        time.sleep(_SETTLE_S)
        _check_free(path, mine, settled=True)
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, mine, done), name="lease", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        with contextlib.suppress(StorageError):
            if _holder(path) == mine:
                path.unlink(missing_ok=True)
                delete([path])


def _check_free(path: Path, mine: dict[str, Any], settled: bool = False) -> None:
    holder = _holder(path)
    if holder is None or holder == mine:
        return
    here = (holder.get("host"), holder.get("boot", mine["boot"])) == (mine["host"], mine["boot"])
    if here and not settled:
        return
    age = _age(path)
    if age < _STALE_S:
        what = f"another driver is writing the run (process {holder.get('pid')} on {holder.get('host')}, last heard of {age:.0f} s ago: {shown(path.parent)})"
        raise InputError(Problem("name", what, f"Wait for it, or stop it; where it is dead already, try again in {_STALE_S - age:.0f} s."))


def _keep(path: Path, mine: dict[str, Any], done: threading.Event) -> None:
    """Say now and then that the holder lives. One that slept too long finds another in its place, and must not write any more."""
    while not done.wait(_BEAT_S):
        try:
            holder = _holder(path)
        except StorageError:  # the storage is away for a moment; the next beat may pass
            continue
        if holder is not None and holder != mine:
            print(f"error: the run was taken over by process {holder.get('pid')} on {holder.get('host')}; this driver ends.", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError, StorageError):
            if remote_of(path):
                _write(path, mine)
            else:
                os.utime(path)  # its time alone: what another has written meanwhile stays


def _boot() -> str:
    """Tells hosts of one name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return ""


def _write(path: Path, mine: dict[str, Any]) -> None:
    if remote_of(path):
        write_marker(path, json.dumps(mine), _REQUEST_S)
    else:
        write_json(path, mine)


def _holder(path: Path) -> dict[str, Any] | None:
    """Who holds it; nobody where the file is missing or damaged."""
    if remote_of(path):
        refetch(path, _REQUEST_S)
    with contextlib.suppress(InputError):
        found = read_json(path)
        return found if isinstance(found, dict) else None
    return None


def _age(path: Path) -> float:
    """Seconds since the last beat, by the clock of the storage: those of the hosts may differ."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if remote_of(path):
        return _age_of_object(path, probe)
    try:
        probe.touch()
        return max(probe.stat().st_mtime - path.stat().st_mtime, 0.0)
    except FileNotFoundError:  # given back meanwhile
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)


def _age_of_object(path: Path, probe: Path) -> float:
    try:
        written = modified(path)
        write_marker(probe, "")
        return max(modified(probe) - written, 0.0)
    except FileNotFoundError:  # given back meanwhile
        return float("inf")
    finally:
        delete([probe])
