"""What a `storage_path` can do, be it a folder or a bucket."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from raytrain_nlp.errors import Problem

Wanted = Callable[[str], bool]
"""Is a file, by its name below a folder, asked for?"""


def everything(name: str) -> bool:
    """All files are wanted."""
    return True


class Storage(ABC):
    """Where runs and caches lie. Everything has a path below `root` on this node, which any code may read and write;
    of a bucket these are copies, which travel when they are asked to.

    Paths are absolute and below `root`. Methods raise `StorageError` where the storage refuses, or has failed for
    `patience` seconds, `UnsafeName` where it has a name that would be a file outside of its folder, and `OSError`
    where this node's disk does. Instances are plain values: they may be pickled and sent to other nodes.
    """

    root: Path
    """On this node."""
    shared: bool
    """Is `root` one folder, the same for all nodes? Otherwise each node has copies of its own."""
    poll_s: float
    """How often it may be asked about a file that others change, in seconds."""

    @abstractmethod
    def address_of(self, path: Path) -> str:
        """A path as its user knows it."""

    @abstractmethod
    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """What this node has of the storage is needed while inside."""

    @abstractmethod
    def check(self) -> list[Problem]:
        """What keeps anything from being written here, as problems of `storage_path`. Leaves nothing behind."""

    # To this node

    @abstractmethod
    def fetch(self, path: Path) -> bool:
        """Is the file here, now at the latest?"""

    @abstractmethod
    def refetch(self, path: Path, patience: float | None = None) -> bool:
        """Bring the storage's state of a file that others change: its content, or that it is not there. Is it?"""

    @abstractmethod
    def fetch_tree(self, folder: Path, wanted: Wanted = everything, again: bool = False) -> None:
        """Bring the files of a folder that are not here, or are of another size; all `wanted` ones with `again`."""

    @abstractmethod
    def list_tree(self, folder: Path) -> dict[str, int]:
        """Names of the files below a folder, with their sizes in bytes; empty where there is no such folder."""

    @abstractmethod
    def modified(self, path: Path) -> float:
        """When a file was written, by the storage's clock: seconds since the epoch. Raises `FileNotFoundError`."""

    # From this node

    @abstractmethod
    def push(self, path: Path, patience: float | None = None, to: Path | None = None) -> None:
        """Have a file, which was written on this node, in the storage; as `to`, where that is given."""

    @abstractmethod
    def push_all(self, paths: Iterable[Path]) -> None:
        """Have files in the storage."""

    @abstractmethod
    def push_tree(self, folder: Path, last: str = "", again: bool = False) -> None:
        """Have the files of a folder in the storage: those it has not, or of another size, or all with `again`; the one
        named `last` after all others.
        """

    @abstractmethod
    def write(self, path: Path, content: str, patience: float | None = None) -> None:
        """Write a small file in the storage, which others see whole or not at all. A copy may have to be fetched."""

    @abstractmethod
    def touch(self, path: Path, patience: float | None = None) -> None:
        """Give a file the present time, by the storage's clock; make it, empty, where there is none."""

    @abstractmethod
    def create(self, path: Path, content: str, patience: float | None = None) -> bool:
        """Make a file with all of its content, where there is none: did this call make it? Of several nodes that try,
        one does, where the storage `has_conditions`.
        """

    @abstractmethod
    def has_conditions(self) -> bool:
        """Is `create` one step, so that of several nodes that try one succeeds?"""

    @abstractmethod
    def delete(self, paths: Iterable[Path]) -> None:
        """Delete files, in the storage and here; one that is gone already is no error."""

    @abstractmethod
    def delete_tree(self, folder: Path, first: str = "", keep: Iterable[str] = ()) -> None:
        """Delete a folder, in the storage and here, except for the entries in `keep`; the file named `first` before all
        others, so that what it vouches for is never half there.
        """
