"""Where checkpoints are committed: a folder that all ranks share, or object storage, to which they travel while
training goes on.

A thread of each rank sends its files (`RemoteCommits._send`). What it raises on any rank is raised by all ranks at the
next commit, or at the end of training: until then the checkpoint before is the newest.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raytrain_nlp.checkpoint import store
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.errors import StorageError
from raytrain_nlp.storage import Storage, storage_of
from raytrain_nlp.storage.atomic import fsync_dir, remove
from raytrain_nlp.storage.folder import Folder
from raytrain_nlp.storage.names import what_is_wrong

_POLL_S = 0.5
_OTHERS_S = 1_200.0
"""How long the first rank waits for the files of the others."""


@dataclass
class Commits:
    """In a shared folder."""

    root: Path
    rank: int
    world_size: int
    save_total_limit: int | None
    on_commit: Callable[[int, float], None]
    """Called with (step, seconds) on the first rank after each commit."""

    @property
    def storage(self) -> Storage:
        """What `root` belongs to."""
        return storage_of(self.root)

    def find(self, note: Callable[[str], None]) -> store.Checkpoint | None:
        """The newest good checkpoint, the same on all ranks; every rank must call it."""
        if self.rank == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            fsync_dir(self.root.parent)
            store.clean_leftovers(self.root)
        scanned = broadcast_object(
            store.scan(self.root) if self.rank == 0 else None
        )  # one list for all: shared folders show changes late
        return store.find_checkpoint(self.root, self.damage, note, scanned)

    def damage(self, checkpoint: store.Checkpoint) -> str | None:
        """What is wrong with a checkpoint, the same on all ranks, or None: then what a rank reads of it is at hand.
        Every rank must call it.
        """
        return _first(store.damage(checkpoint, self.rank, self.world_size))

    def commit(
        self, staging: Path, mine: list[store.FileEntry], manifest: store.Manifest, keep: set[int], started: float
    ) -> None:
        """Make a checkpoint of what all ranks have staged. Every rank calls it, with the files it wrote itself."""
        if self.rank == 0:
            store.commit(self.root, staging, manifest)
            store.apply_retention(self.storage, self.root, self.save_total_limit, keep)
            self.on_commit(manifest.step, time.perf_counter() - started)

    def finish(self) -> None:
        """Wait until what was committed is safe; every rank must call it."""


@dataclass
class RemoteCommits(Commits):
    """In object storage, which says what is committed. Each node keeps what its own ranks wrote of the newest
    checkpoint, and copies of others what its ranks read: their own parts and what is common to all.

    A rank's thread sends its files, then a mark; the first rank's sends the manifest once all marks are there.
    """

    local_rank: int = 0
    local_world_size: int = 1
    before_commit: Callable[[], None] = lambda: None
    """What must be in the storage before a checkpoint is."""

    def __post_init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._over = threading.Event()

    def find(self, note: Callable[[str], None]) -> store.Checkpoint | None:
        self._together(self._take_index)
        return super().find(note)

    def commit(
        self, staging: Path, mine: list[store.FileEntry], manifest: store.Manifest, keep: set[int], started: float
    ) -> None:
        self.finish()  # one is on its way at a time
        if self.local_rank == 0:
            store.commit(self.root, staging, manifest)
            store.apply_retention(Folder(self.root), self.root, 1, keep)
        broadcast_object(None)
        self._thread = threading.Thread(
            target=self._send, args=(manifest, mine, staging.name, keep, started), name="upload", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if error := _first(str(self._error) if self._error else None):
            raise StorageError(f"a checkpoint could not be kept: {error}.")

    def _take_index(self) -> None:
        """Manifests as the storage has them; what is neither committed there nor on its way is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        store.clean_leftovers(self.root)
        there = self.storage.list_tree(self.root)
        committed = store.with_manifest(there)
        for folder in self.root.glob("checkpoint-*"):
            if folder.name not in committed:
                remove(folder)
        if self.rank == 0:
            self.storage.delete(self.root / name for name in there if name.partition("/")[0] not in committed)
        self.storage.fetch_tree(self.root, lambda name: name.partition("/")[2] == store.MANIFEST, again=True)

    def damage(self, checkpoint: store.Checkpoint) -> str | None:
        """As it is said of the storage: copies of this node that differ from it are made again before they are
        blamed.
        """
        if wrong := next(filter(None, (what_is_wrong(entry.path) for entry in checkpoint.manifest.files)), None):
            return f"a file of its manifest {wrong}"
        first = self.rank - self.local_rank  # Ray Train numbers the ranks of a node in a row
        files = store.files_of_ranks(checkpoint.manifest, range(first, first + self.local_world_size), self.world_size)
        names = {entry.path for entry in files}

        def copy(again: bool) -> None:
            for name in names if again else ():
                (checkpoint.path / name).unlink(missing_ok=True)
            self.storage.fetch_tree(checkpoint.path, names.__contains__)

        wrong = None
        for again in (False, True):
            self._together(functools.partial(copy, again))
            wrong = _first(store.damage(checkpoint, self.local_rank, self.local_world_size, files))
            if wrong is None:
                break
        return wrong

    def _together(self, action: Callable[[], None]) -> None:
        """`action` once a node; raises on all ranks where it fails on any."""
        failed = None
        if self.local_rank == 0:
            try:
                action()
            except StorageError as error:
                failed = str(error)
        if told := _first(failed):
            raise StorageError(told)

    def _send(
        self, manifest: store.Manifest, mine: list[store.FileEntry], attempt: str, keep: set[int], started: float
    ) -> None:
        folder = self.root / store.checkpoint_name(manifest.step)
        try:
            self.storage.push_all(folder / entry.path for entry in mine)
            self.storage.write(folder / f".rank-{self.rank}{attempt}", "")
            if self.rank == 0:
                marks = {f".rank-{rank}{attempt}" for rank in range(manifest.world_size)}
                self._await(folder, marks)
                self.before_commit()
                self.storage.push(folder / store.MANIFEST)
                self.storage.delete(folder / mark for mark in marks)
                store.apply_retention(self.storage, self.root, self.save_total_limit, keep)
                self.on_commit(manifest.step, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - raised by all ranks at the next commit
            self._error = error

    def _await(self, folder: Path, marks: set[str]) -> None:
        end = time.monotonic() + _OTHERS_S
        while missing := marks - self.storage.list_tree(folder).keys():
            if time.monotonic() > end:
                raise StorageError(f"{len(missing)} of {len(marks)} ranks have not sent their files of {folder.name}")
            time.sleep(_POLL_S)


def build_commits(
    root: Path,
    rank: int,
    world_size: int,
    save_total_limit: int | None,
    on_commit: Callable[[int, float], None],
    before_commit: Callable[[], None],
) -> Commits:
    """For a run's folder, wherever it is."""
    common = root, rank, world_size, save_total_limit, on_commit
    if storage_of(root).shared:
        return Commits(*common)
    return RemoteCommits(
        *common, int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), before_commit
    )


def _first(text: str | None) -> str | None:
    """Of all ranks' texts the first, on all ranks."""
    return next((found for found in gather_objects(text) if found), None)
