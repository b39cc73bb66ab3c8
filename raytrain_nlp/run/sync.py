"""A run whose `storage_path` is object storage, on the driver's side: what it writes goes there, what the workers send
comes from there.

    workers --events/N.jsonl, progress.json--> storage --> driver --joins--> events.jsonl --> storage

On the workers' own node their files are here already: only what the storage has more of is copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.paths import TRIAL, RunPaths, SweepPaths, read_json
from raytrain_nlp.storage.objects import PATIENCE_S
from raytrain_nlp.storage.uploader import Courier, Outbox
from raytrain_nlp.tracking.events import EventLog, read_events

_PULL_S = 2.0
_DATABASE_S = 30.0
_LARGE = ("checkpoints", "model", "ray")
"""Folders whose files come when they are asked for."""


@contextlib.contextmanager
def arrived(paths: RunPaths) -> Iterator[None]:
    """While inside this node has the small files of a run as the storage has them. Nothing to do for a folder."""
    if paths.store.shared:
        yield
        return
    with paths.store.in_use():
        paths.run.mkdir(parents=True, exist_ok=True)
        with paths.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its driver on this node works with these files
                what = f"another driver is writing the run ({paths.address})"
                raise InputError(Problem("name", what, "Wait for it, or stop it.")) from None
            bring_run(paths)
        yield


def bring_run(paths: RunPaths) -> None:
    """The small files of a run, in the state of the storage; what an earlier driver has left here is older, or was
    never sent. Nothing to do for a folder.
    """
    if paths.store.shared:
        return
    for path in paths.run.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path != paths.lock:
            path.unlink(missing_ok=True)
    paths.store.fetch_tree(paths.run, _is_small, again=True)


def _is_small(name: str) -> bool:
    parts = name.split("/")
    if parts[0] == "trials":
        parts = parts[2:]
    return not parts or parts[0] not in _LARGE or (parts[0] == "checkpoints" and parts[2:] == ["manifest.json"])


@contextlib.contextmanager
def carried(paths: RunPaths, warn: Callable[[str], None], tracked: bool = True) -> Iterator[Callable[[], None]]:
    """While inside, files travel. Yields what waits until those written so far are in the storage.

    Args:
        tracked: how far the tracker is, is this run's affair; that of a trial is its sweep's.
    """
    if paths.store.shared:
        yield lambda: None
        return
    carrier = _Carrier(paths, tracked)
    with Courier(carrier.carry, warn, every_s=0.3) as courier:
        yield courier.flush
    carrier.tidy()


class _Carrier:
    def __init__(self, paths: RunPaths, tracked: bool):
        self._paths, self._outbox, self._tracked = paths, Outbox(paths.store), tracked
        self._joined = {
            name: offset
            for event, _ in read_events(paths.events)
            if (found := event.get("from"))
            for name, offset in [found]
        }
        self._next_pull = self._next_database = 0.0
        self._database: tuple[int, int] | None = None

    def carry(self, patience: float) -> None:
        now, whole = time.monotonic(), patience >= PATIENCE_S
        if pull := whole or now >= self._next_pull:
            self._pull()
        self._join()
        if pull:
            # what has been shipped of the events: sent behind them and behind MLflow's figures, as it was before
            tracking = {path: path.read_bytes() for path in self._tracking_files() if path.exists()}
            shipped = self._send_database(whole)
            for path in self._own_files():
                self._outbox.send(path, patience)
            for path, content in tracking.items() if shipped else ():
                self._send_tracking(path, content, patience)
            self._next_pull = time.monotonic() + _PULL_S

    def tidy(self) -> None:
        """All that the workers sent has been joined."""
        self._paths.store.delete_tree(self._paths.worker_events)

    def _pull(self) -> None:
        """What workers on other nodes have sent."""
        folder = self._paths.worker_events
        elsewhere = False
        if isinstance(self._paths, SweepPaths):  # its trials have drivers, which run on this node
            return
        for name, size in self._paths.store.list_tree(folder).items():
            file = folder / name
            if not file.exists() or file.stat().st_size < size:
                self._paths.store.refetch(file)
                elsewhere = True
        if elsewhere:
            self._paths.store.refetch(self._paths.progress)
            self._paths.store.refetch(self._paths.failure)

    def _join(self) -> None:
        log = None
        for file in sorted(self._paths.worker_events.glob("[0-9]*.jsonl")):
            for event, behind in read_events(file, self._joined.get(file.name, 0)):
                log = log or EventLog(self._paths.events)
                log.append({**event, "from": [file.name, behind]})
                self._joined[file.name] = behind

    def _own_files(self) -> list[Path]:
        paths = self._paths
        others = {paths.lock, paths.lease, paths.progress, paths.tracking, paths.failure, paths.run / TRIAL}
        files = [
            path
            for path in paths.run.glob("*")
            if path.is_file() and path not in others and not path.name.startswith(".") and "mlflow.db" not in path.name
        ]
        files += [
            path for folder in ("mlartifacts", "plots") for path in (paths.run / folder).rglob("*") if path.is_file()
        ]
        return sorted(files) + (sorted(paths.trials.glob(f"*/{TRIAL}")) if isinstance(paths, SweepPaths) else [])

    def _tracking_files(self) -> list[Path]:
        paths = self._paths
        if isinstance(paths, SweepPaths):
            return [paths.tracking, *paths.trials.glob(f"*/{paths.tracking.name}")]
        return [paths.tracking] if self._tracked else []

    def _send_database(self, whole: bool) -> bool:
        """A copy of MLflow's database in which no transaction is half done. Has the storage all of it now?"""
        source = _database_of(self._paths)
        if not self._tracked or not source.exists():
            return True
        if not (read_json(self._paths.tracking) or {}).get("run_id"):  # its tables are being made
            return False
        state = (source.stat().st_mtime_ns, source.stat().st_size)
        if state == self._database:
            return True
        if not whole and time.monotonic() < self._next_database:
            return False
        copy = source.with_name(".mlflow.db.copy")
        with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(copy)) as still:
            live.backup(still)
        self._paths.store.push(copy, to=source)
        copy.unlink()
        self._database, self._next_database = state, time.monotonic() + _DATABASE_S
        return True

    def _send_tracking(self, path: Path, content: bytes, patience: float) -> None:
        copy = path.with_name(f".{path.name}.copy")
        if not copy.exists() or copy.read_bytes() != content:
            copy.write_bytes(content)
            self._paths.store.push(copy, patience, to=path)


def _database_of(paths: RunPaths) -> Path:
    return paths.run / "mlflow.db"
