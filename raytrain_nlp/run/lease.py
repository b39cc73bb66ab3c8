"""The lease on a run's folder. It keeps drivers on two hosts from writing the same run, also where the file system has
no locks between hosts.

    driver.json                 names the holder; created exclusively, so one of several drivers succeeds (`Storage.create`)
    .driver.json.after-HOLDER   the right to replace this holder: a lease of the same kind, held while driver.json changes
    .driver.json.beat-HOLDER    its modification time is the holder's last sign of life; before that, driver.json's own

Only the driver that has the right to replace a holder overwrites or removes `driver.json`, and only after checking that
the file still names this holder. So when two drivers find the same dead holder, one of them takes the lease. A holder
that was suspended for longer than its lease finds another holder at its next beat, and ends.

Some servers with an S3 interface ignore the condition of a conditional write. The driver says so once. If two drivers
start at the same moment on such a server, the one whose `driver.json` was overwritten notices it at its next beat, and
ends.
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
"""Seconds between two beats of a holder."""
_STALE_S = 60.0
"""Seconds without a beat after which a holder on another host is taken for dead."""
_REQUEST_S = 20.0
"""Seconds for which one request to object storage is retried."""
_TRIES = 5
"""Attempts to take a lease; one fails when the holder gives it back between our two requests."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lease `path` while inside. The caller must hold the run's lock file (`fcntl.flock`), so a holder on the
    same host cannot be alive.

    Raises:
        InputError: a driver on another host holds the lease.
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
        with contextlib.suppress(StorageError, InputError, OSError):  # the lease expires a minute after the last beat
            if _holder(path) == mine:
                with _following(path, mine, mine, path):
                    storage_of(path).delete([path])


def _take(path: Path, mine: dict[str, Any], lease: Path) -> None:
    """Make this driver the holder of `path`.

    Args:
        path: the lease, or the right to replace one of its holders.
        mine: this driver, as it is written into `path`.
        lease: the lease itself, for messages.

    Raises:
        InputError: another driver, which is alive, holds `path`.
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
    """While inside, only this driver may overwrite or remove `path`, which names `holder`. Raises `InputError` if it
    names another one by now.
    """
    right = path.with_name(f".{path.name.lstrip('.')}.after-{_name_of(holder)}")
    began = time.monotonic()
    _take(right, mine, lease)
    try:
        found = _holder(path)
        if (
            found != holder or time.monotonic() - began > _STALE_S / 2
        ):  # another driver was faster, or may have been, if this process was suspended
            raise InputError(_taken(found or {}, 0.0, lease))
        yield
    finally:
        storage_of(right).delete([right])
    storage_of(path).delete([_beat_of(path, holder)])


def _check_dead(path: Path, holder: dict[str, Any], mine: dict[str, Any], lease: Path) -> None:
    """Raises `InputError` unless the holder ran on this host since its last boot (see `held`) or has stopped
    beating.
    """
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
    """Beat until `done` is set. If another driver has taken the lease over, end this process, which must not write any
    more.

    An error is reported once and the beat is retried: this driver holds the lease until another one takes it.
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
                end_now(1, last_words=False)  # not even a checkpoint: the files belong to the other driver
                return
            storage_of(path).touch(_beat_of(path, mine), _REQUEST_S)
        except StorageError:  # the storage does not answer for a moment; the next beat may succeed
            continue
        except Exception as error:  # noqa: BLE001 - a missed beat does no harm; without this thread the lease would expire
            once(f"the lease of the run cannot be kept alive ({type(error).__name__}: {error}); it is tried again.")


def _boot() -> str:
    """Linux's id of this boot, which tells apart hosts of the same name; empty on other systems."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return ""


def _name_of(holder: dict[str, Any]) -> str:
    """The holder as part of a file name. It is a hash, because anybody may have written the lease's content."""
    return hashlib.sha256(json.dumps(holder, sort_keys=True).encode()).hexdigest()[:16]


def _beat_of(path: Path, holder: dict[str, Any]) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.beat-{_name_of(holder)}")


def _holder(path: Path) -> dict[str, Any] | None:
    """The holder that `path` names; None if there is no such file. An unreadable file has a holder too, an empty
    one.
    """
    storage_of(path).refetch(path, _REQUEST_S)
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) or not path.exists() else {}


def _age(path: Path, holder: dict[str, Any]) -> float:
    """Seconds since the holder's last beat, by the clock of the storage, because the hosts' clocks may differ. A beat
    in the future counts as one in the past: the clock has been set back since, and the holder has not beaten.
    """
    storage, probe = storage_of(path), path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}")
    try:
        storage.touch(probe, _REQUEST_S)
        beats = []
        for made in (path, _beat_of(path, holder)):
            with contextlib.suppress(FileNotFoundError):  # the lease was given back meanwhile, or has no beat yet
                beats.append(storage.modified(made))
        return abs(storage.modified(probe) - max(beats)) if beats else float("inf")
    finally:
        storage.delete([probe])
