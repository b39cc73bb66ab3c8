"""Committing checkpoints: to a folder that all ranks share, or to object storage, in the background of training.

A thread of each rank uploads its files (`RemoteCommits._send`). An error in it on any rank is raised by all ranks at
the next commit, or at the end of training; until then the previous checkpoint is the newest.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raytrain_nlp.checkpoint import store
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.errors import DiskError, StorageError
from raytrain_nlp.storage import Storage, storage_of
from raytrain_nlp.storage.atomic import fsync_dir, remove
from raytrain_nlp.storage.folder import Folder
from raytrain_nlp.storage.names import what_is_wrong

_POLL_S = 0.5
_OTHERS_S = 1_200.0
"""How long the first rank waits for the files of the others."""


@dataclass
class Commits:
    """Commits checkpoints to a folder that all ranks share."""

    root: Path
    rank: int
    world_size: int
    save_total_limit: int | None
    on_commit: Callable[[int, float], None]
    """Called with (step, seconds) on the first rank after each commit."""

    @property
    def storage(self) -> Storage:
        """The storage that `root` is in."""
        return storage_of(self.root)

    def find(self, note: Callable[[str], None]) -> store.Checkpoint | None:
        """The newest intact checkpoint, the same on all ranks, or None. Every rank must call it.

        Args:
            note: called with a line of text for each damaged checkpoint that is passed over.

        Raises:
            CheckpointError: there are checkpoints, but none is intact.
        """
        if self.rank == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            fsync_dir(self.root.parent)
            store.clean_leftovers(self.root)
        scanned = broadcast_object(
            store.scan(self.root) if self.rank == 0 else None
        )  # one list for all: shared folders show changes late
        return store.find_checkpoint(self.root, self.damage, note, scanned)

    def damage(self, checkpoint: store.Checkpoint) -> str | None:
        """What is wrong with a checkpoint, the same on all ranks, or None where it is intact; this node then has the
        files that its ranks read. Every rank must call it.
        """
        return _first(store.damage(checkpoint, self.rank, self.world_size))

    def commit(
        self, staging: Path, mine: list[store.FileEntry], manifest: store.Manifest, keep: set[int], started: float
    ) -> None:
        """Turn the staging folder of all ranks into a checkpoint. Every rank must call it.

        Args:
            mine: the files that this rank wrote.
            manifest: the files of all ranks.
            keep: steps whose checkpoints are not deleted, besides the newest `save_total_limit`.
            started: `time.perf_counter()` when saving began, for `on_commit`.
        """
        with written_by_all(staging):
            if self.rank == 0:
                store.commit(self.root, staging, manifest)
        if self.rank == 0:
            store.apply_retention(self.storage, self.root, self.save_total_limit, keep)
            self.on_commit(manifest.step, time.perf_counter() - started)
        gather_objects(None)  # the others go on when it can be loaded, and what it replaces is gone

    def finish(self) -> None:
        """Wait until the last commit is complete, in object storage too. Every rank must call it.

        Raises:
            StorageError: its upload has failed on some rank; on all ranks.
        """


@dataclass
class RemoteCommits(Commits):
    """Commits checkpoints to object storage; a checkpoint is committed when its manifest is there. Each node keeps the
    files of the newest one that its ranks wrote. To load one, a node downloads those that its ranks read: their own
    files and the ones common to all ranks.

    A thread of each rank uploads its files, then an empty marker; that of the first rank uploads the manifest once it
    has found the markers of all.
    """

    local_rank: int = 0
    local_world_size: int = 1
    before_commit: Callable[[], None] = lambda: None
    """Uploads what must be in the storage before a checkpoint's manifest is."""

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
        self.finish()  # only one upload at a time
        with written_by_all(staging):
            if self.local_rank == 0:
                store.commit(self.root, staging, manifest)
                store.apply_retention(Folder(self.root), self.root, 1, keep)
        self._thread = threading.Thread(
            target=self._send, args=(manifest, mine, staging.name, keep, started), name="upload", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if error := _first(str(self._error) if self._error else None):
            raise StorageError(f"a checkpoint could not be uploaded: {error}.")

    def _take_index(self) -> None:
        """Download the manifests in the storage, and delete checkpoints without one, there and on this node."""
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
        """As `Commits.damage`, of the files in the storage: where this node's copies seem damaged, they are downloaded
        again and checked a second time.
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
        """Run `action` on one rank of each node. Raises `StorageError` on all ranks where it fails on any node."""
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
    """The `Commits` for the checkpoints' folder of a run, shared or in object storage. Reads `LOCAL_RANK` and
    `LOCAL_WORLD_SIZE`, which Ray Train sets.

    Args:
        on_commit: called on the first rank after each commit, with the step and the seconds it took.
        before_commit: called on the first rank before the manifest is uploaded; only for object storage.
    """
    common = root, rank, world_size, save_total_limit, on_commit
    if storage_of(root).shared:
        return Commits(*common)
    return RemoteCommits(
        *common, int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), before_commit
    )


@contextlib.contextmanager
def written_by_all(staging: Path) -> Iterator[None]:
    """A `DiskError` of one rank leaves it on all ranks, which wait here for each other; the staging folder, which takes
    room, is removed then. Every rank must enter it.
    """
    failed = None
    try:
        yield
    except DiskError as error:
        failed = str(error)
    if told := _first(failed):
        remove(staging)
        raise DiskError(told)


def _first(text: str | None) -> str | None:
    """The first text that is not None or empty, in rank order; the same on all ranks."""
    return next((found for found in gather_objects(text) if found), None)
