"""The lease on a run's folder: two drivers on two hosts cannot both write, whatever the file system makes of locks.

    driver.json                 who holds it; made where there is none, which of several one does (`Storage.create`)
    .driver.json.after-HOLDER   who follows a holder that is dead; a lease of the same kind, held for the moment of the change
    .driver.json.beat-HOLDER    written when the holder was last alive; before its first beat the time of `driver.json` says so

Nobody replaces or removes `driver.json` but who holds the right to follow its holder, and has then seen that it is
still this holder's: of two drivers that both find a dead one, one follows. A holder that slept through its time finds
another in its place and ends.

Where object storage does not look at conditions (some servers that speak S3), this is said once, and of two drivers
that start in the same moment the first finds the other in its place at its next beat, and ends.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import InputError, Problem, StorageError
from raytrain_nlp.host.once import once
from raytrain_nlp.host.signals import end_now
from raytrain_nlp.paths import read_json
from raytrain_nlp.storage import shown, storage_of

_BEAT_S = 10.0
_STALE_S = 60.0
"""A holder that has not been heard of for this long is taken for dead."""
_REQUEST_S = 20.0
"""How long one request to object storage is tried again."""
_TRIES = 5
"""To take a lease that is given back at the moment it is asked for."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lease while inside. The caller has the lock of this host already: a holder of the same host is therefore
    dead.

    Raises:
        InputError: a driver on another host holds it.
    """
    mine = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "id": uuid.uuid4().hex}
    if not storage_of(path).has_conditions():
        once(
            f"{shown(path.parent)}: this storage makes no conditional writes; do not start two drivers of one run at "
            f"the same time."
        )
    _take(path, mine, path)
    done = threading.Event()
    beat = threading.Thread(target=_keep, args=(path, mine, done), name="lease", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        with contextlib.suppress(StorageError, InputError, OSError):  # it ends by itself, a minute after the last beat
            if _holder(path) == mine:
                with _following(path, mine, mine, path):
                    storage_of(path).delete([path])


def _take(path: Path, mine: dict[str, Any], lease: Path) -> None:
    """Make `path`, the lease or the right to follow a holder of it, ours. Raises `InputError` where it is another's who
    lives.
    """
    for _ in range(_TRIES):
        if storage_of(path).create(path, json.dumps(mine), _REQUEST_S) or (holder := _holder(path)) == mine:
            return
        if holder is not None:
            _check_dead(path, holder, mine, lease)
            with _following(path, holder, mine, lease):
                storage_of(path).write(path, json.dumps(mine), _REQUEST_S)
                return
    raise InputError(
        Problem("name", f"other drivers start the run at the same time ({shown(lease.parent)})", "Start one of them.")
    )


@contextlib.contextmanager
def _following(path: Path, holder: dict[str, Any], mine: dict[str, Any], lease: Path) -> Iterator[None]:
    """While inside, nobody else replaces or removes this holder's file. Raises `InputError` where that is no longer
    there.
    """
    right = path.with_name(f".{path.name.lstrip('.')}.after-{_name_of(holder)}")
    began = time.monotonic()
    _take(right, mine, lease)
    try:
        found = _holder(path)
        if (
            found != holder or time.monotonic() - began > _STALE_S / 2
        ):  # another was faster, or may be: this process slept
            raise InputError(_taken(found or {}, 0.0, lease))
        yield
    finally:
        storage_of(right).delete([right])
    storage_of(path).delete([_beat_of(path, holder)])


def _check_dead(path: Path, holder: dict[str, Any], mine: dict[str, Any], lease: Path) -> None:
    if (holder.get("host"), holder.get("boot", mine["boot"])) == (mine["host"], mine["boot"]):
        return
    age = _age(path, holder)
    if age < _STALE_S:
        raise InputError(_taken(holder, age, lease))


def _taken(holder: dict[str, Any], age: float, lease: Path) -> Problem:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "its lease cannot be read"
    who = f"{who}, last heard of {age:.0f} s ago"
    what = f"another driver is writing the run ({who}: {shown(lease.parent)})"
    return Problem(
        "name", what, f"Wait for it, or stop it; where it is dead already, try again in {max(_STALE_S - age, 1):.0f} s."
    )


def _keep(path: Path, mine: dict[str, Any], done: threading.Event) -> None:
    """Say now and then that the holder lives. One that slept too long finds another in its place, and must not write
    any more.

    What fails is told once, and tried again at the next beat: until another takes the lease, this driver has it.
    """
    while not done.wait(_BEAT_S):
        try:
            holder = _holder(path)
            if holder is not None and holder != mine:
                print(
                    f"error: the run was taken over by process {holder.get('pid')} on {holder.get('host')}; this "
                    f"driver ends.",
                    file=sys.stderr,
                    flush=True,
                )
                end_now(1, last_words=False)  # not even a checkpoint: the files are another's
                return
            storage_of(path).touch(_beat_of(path, mine), _REQUEST_S)
        except StorageError:  # the storage is away for a moment; the next beat may pass
            continue
        except Exception as error:  # noqa: BLE001 - a beat that is missed ends nothing; a thread that has ended does, a minute later
            once(f"the lease of the run cannot be kept alive ({type(error).__name__}: {error}); it is tried again.")


def _boot() -> str:
    """Tells hosts of one name apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return ""


def _name_of(holder: dict[str, Any]) -> str:
    """For names of files: what is in a lease may have been written by anybody."""
    return hashlib.sha256(json.dumps(holder, sort_keys=True).encode()).hexdigest()[:16]


def _beat_of(path: Path, holder: dict[str, Any]) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.beat-{_name_of(holder)}")


def _holder(path: Path) -> dict[str, Any] | None:
    """Who holds it; None where there is no such file. Of a damaged one nothing is known, but somebody has made it."""
    storage_of(path).refetch(path, _REQUEST_S)
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) or not path.exists() else {}


def _age(path: Path, holder: dict[str, Any]) -> float:
    """Seconds since the last beat, by the clock of the storage: those of the hosts may differ. A beat in the future was
    none of a driver that lives, but of a clock that has been set back."""
    storage, probe = storage_of(path), path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}")
    try:
        storage.touch(probe, _REQUEST_S)
        beats = []
        for made in (path, _beat_of(path, holder)):
            with contextlib.suppress(FileNotFoundError):  # given back meanwhile, or not yet made
                beats.append(storage.modified(made))
        return abs(storage.modified(probe) - max(beats)) if beats else float("inf")
    finally:
        storage.delete([probe])
