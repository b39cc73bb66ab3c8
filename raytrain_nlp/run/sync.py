"""Synchronization of a run with object storage, on the driver's side: files of the driver are uploaded, files that the
workers have uploaded are fetched.

    workers --events/N.jsonl, progress.json--> storage --> driver --appends--> events.jsonl --> storage

Workers on the driver's node write into the same local folder, so a file is fetched only if the storage has more of it.
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
"""Seconds between two rounds of fetching and sending; the workers' events are joined more often."""
_DATABASE_S = 30.0
"""Seconds between two uploads of MLflow's database."""
_LARGE = ("checkpoints", "model", "ray")
"""Folders whose files are not fetched with a run, but when they are needed."""


@contextlib.contextmanager
def fetched(paths: RunPaths) -> Iterator[None]:
    """On entering, fetch the small files of a run; while inside, this process's copy is in use. Does nothing for a run
    whose storage is a folder.

    Raises:
        InputError: another driver on this node writes the run.
    """
    if paths.store.shared:
        yield
        return
    with paths.store.in_use():
        paths.run.mkdir(parents=True, exist_ok=True)
        with paths.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another driver on this node uses these files
                what = f"another driver is writing the run ({paths.address})"
                raise InputError(Problem("name", what, "Wait for it, or stop it.")) from None
            fetch_run(paths)
        yield


def fetch_run(paths: RunPaths) -> None:
    """Replace the local files of a run by the small files that the storage has. What an earlier driver has left on this
    node is older, or was never uploaded. Does nothing for a run whose storage is a folder.
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
    """Is a file fetched with its run? `name` is relative to the folder of the run, or of the sweep."""
    parts = name.split("/")
    if parts[0] == "trials":
        parts = parts[2:]
    return not parts or parts[0] not in _LARGE or (parts[0] == "checkpoints" and parts[2:] == ["manifest.json"])


@contextlib.contextmanager
def synchronized(paths: RunPaths, warn: Callable[[str], None], tracked: bool = True) -> Iterator[Callable[[], None]]:
    """While inside, a thread synchronizes the run's files with the storage; at the end once more. Yields a function
    that waits until all that has been written so far is in the storage. Does nothing for a run whose storage is a
    folder.

    Args:
        warn: is told once when the storage does not answer.
        tracked: whether the tracker's files are uploaded here; those of a trial are uploaded by its sweep.
    """
    if paths.store.shared:
        yield lambda: None
        return
    sync = _RunSync(paths, tracked)
    with Courier(sync.run_once, warn, every_s=0.3) as courier:
        yield courier.flush
    sync.remove_worker_events()


class _RunSync:
    """Fetches what the workers have uploaded, appends it to the run's events, and uploads the driver's files."""

    def __init__(self, paths: RunPaths, tracked: bool):
        self._paths, self._outbox, self._tracked = paths, Outbox(paths.store), tracked
        # for each file of the workers the byte up to which it has been joined, also by an earlier driver
        self._joined = {
            name: offset
            for event, _ in read_events(paths.events)
            if (found := event.get("from"))
            for name, offset in [found]
        }
        self._next_pull = self._next_database = 0.0
        self._database: tuple[int, int] | None = None

    def run_once(self, patience: float) -> None:
        """One round. With all of the patience (seconds for each request) nothing is left for a later round."""
        now, whole = time.monotonic(), patience >= PATIENCE_S
        if pull := whole or now >= self._next_pull:
            self._pull()
        self._join()
        if pull:
            # tracking.json says which events MLflow has. It is read before the database and the events are sent, and
            # sent after them, so that in the storage it never claims more than they hold
            tracking = {path: path.read_bytes() for path in self._tracking_files() if path.exists()}
            shipped = self._send_database(whole)
            for path in self._own_files():
                self._outbox.send(path, patience)
            for path, content in tracking.items() if shipped else ():
                self._send_tracking(path, content, patience)
            self._next_pull = time.monotonic() + _PULL_S

    def remove_worker_events(self) -> None:
        """Remove the workers' own files of events, all of which have been joined."""
        self._paths.store.delete_tree(self._paths.worker_events)

    def _pull(self) -> None:
        """Fetch what workers on other nodes have uploaded."""
        folder = self._paths.worker_events
        elsewhere = False
        if isinstance(self._paths, SweepPaths):  # a sweep has no workers; its trials' drivers run on this node
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
        """Append the workers' new events to `events.jsonl`, each with the file and the byte offset it comes from."""
        log = None
        for file in sorted(self._paths.worker_events.glob("[0-9]*.jsonl")):
            for event, behind in read_events(file, self._joined.get(file.name, 0)):
                log = log or EventLog(self._paths.events)
                log.append({**event, "from": [file.name, behind]})
                self._joined[file.name] = behind

    def _own_files(self) -> list[Path]:
        """The files that the driver writes: those of the run but the locks, the workers' files and the tracker's."""
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
        """Upload MLflow's database if it has changed, from a copy that is consistent (SQLite's backup). Returns whether
        the storage has its present state now.

        Args:
            whole: send it now, even if it was sent a moment ago.
        """
        source = _database_of(self._paths)
        if not self._tracked or not source.exists():
            return True
        if not (read_json(self._paths.tracking) or {}).get("run_id"):  # MLflow is still creating its tables
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
