"""A storage path that is a bucket, or a part of one (`s3://BUCKET/KEY`): objects, of which each node has copies of what
it needs.

    s3://BUCKET/KEY  <->  TMPDIR/raytrain-nlp-storage-UID/s3/BUCKET/KEY

The place says what it is a copy of, so that a path may be handed from node to node like one of a shared folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from raytrain_nlp.errors import Problem, StorageError
from raytrain_nlp.storage import atomic
from raytrain_nlp.storage.base import Storage, Wanted, everything
from raytrain_nlp.storage.names import below
from raytrain_nlp.storage.objects import SCHEMES, Objects

T = TypeVar("T")
_PROBE_S = 20.0
_AT_ONCE = 8
"""Files that are on their way together."""
_MARK = "raytrain-nlp-storage-"
_PLACE = re.compile(rf"^(?P<root>.*/{_MARK}\d+)/(?P<scheme>{'|'.join(SCHEMES)})/(?P<bucket>[^/]+)(?:/.*)?$")


@dataclass(frozen=True)
class Bucket(Storage):
    """Nothing is copied by itself: `fetch` brings what is not here, `push` sends what was made here."""

    root: Path
    top: Path
    """Where the copy of the whole bucket lies."""
    url: str
    """`SCHEME://BUCKET`."""
    shared = False
    poll_s = 5.0

    @classmethod
    def at(cls, address: str, base: Path | None = None) -> Bucket:
        """The bucket, or the part of one, that an address names; its copies lie below `base`, or where all share
        them.
        """
        scheme, _, rest = address.partition("://")
        bucket, _, key = rest.strip("/").partition("/")
        top = (base or Path(tempfile.gettempdir())).resolve() / f"{_MARK}{os.getuid()}" / scheme / bucket
        return cls(top / key, top, f"{scheme}://{bucket}")

    @classmethod
    def of_copy(cls, path: Path) -> Bucket | None:
        """The bucket of which a path is a copy, or None."""
        if (found := _PLACE.match(str(path))) is None:
            return None
        top = Path(found["root"], found["scheme"], found["bucket"])
        return cls(path, top, f"{found['scheme']}://{found['bucket']}")

    def address_of(self, path: Path) -> str:
        return "/".join(filter(None, (self.url, self._key(path))))

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Who leaves last removes the copies; what a killed process left, goes with them."""
        root = self.top.parent.parent
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)  # who may not read the bucket may not read its copies
        if root.lstat().st_uid != os.getuid() or root.is_symlink():
            raise StorageError(f"{root} belongs to another user. Set TMPDIR to a folder of your own.")
        root.chmod(0o700)  # of an earlier release
        self.top.mkdir(parents=True, exist_ok=True)
        name = f".{self.top.parent.name}.{self.top.name}.lock"
        lock = os.open(root / name, os.O_CREAT | os.O_RDWR, 0o600)
        lost = False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self.top.mkdir(parents=True, exist_ok=True)  # who left last may have removed it this moment
            yield
        except StorageError:
            lost = True  # what could not be sent is here alone
            raise
        finally:
            with contextlib.suppress(OSError):  # another still needs them
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not lost:
                    shutil.rmtree(self.top, ignore_errors=True)
            os.close(lock)

    def check(self) -> list[Problem]:
        address, package = self.address_of(self.root), SCHEMES[self.url.partition("://")[0]]
        if find_spec(package) is None:
            what = f"needs the package {package} ({address})"
            return [Problem("storage_path", what, f"pip install {package}, here and on the nodes.")]
        probe = self.root / f".raytrain-nlp-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, "", _PROBE_S)
            self.delete([probe])
        except (FileNotFoundError, StorageError) as error:
            what = f"cannot be written ({address}: {error})"
            return [Problem("storage_path", what, "Check bucket, keys and network.")]
        return []

    def fetch(self, path: Path) -> bool:
        return path.exists() or self._get(path)

    def refetch(self, path: Path, patience: float | None = None) -> bool:
        if not self._get(path, patience):
            path.unlink(missing_ok=True)
            return False
        return True

    def fetch_tree(self, folder: Path, wanted: Wanted = everything, again: bool = False) -> None:
        """Nothing has been copied where it raises `UnsafeName`."""
        key, missing = self._key(folder), []
        for name, size in self._objects.find(key).items():
            inner = name[len(key) + 1 :]
            if wanted(inner):
                path = below(folder, inner)
                if again or not _has_size(path, size):
                    missing.append((name, path))
        _all(lambda item: self._objects.get(*item), missing)

    def list_tree(self, folder: Path) -> dict[str, int]:
        key = self._key(folder)
        sizes = {name[len(key) + 1 :]: size for name, size in self._objects.find(key).items()}
        for name in sizes:
            below(folder, name)
        return sizes

    def modified(self, path: Path) -> float:
        return self._objects.modified(self._key(path))

    def push(self, path: Path, patience: float | None = None, to: Path | None = None) -> None:
        self._objects.put(path, self._key(to or path), **_patience(patience))

    def push_all(self, paths: Iterable[Path]) -> None:
        """Several at a time."""
        _all(self.push, list(paths))

    def push_tree(self, folder: Path, last: str = "", again: bool = False) -> None:
        if not folder.is_dir():
            return
        key = self._key(folder)
        there = {} if again else self._objects.find(key)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
        new = [path for path in files if there.get(f"{key}/{path.relative_to(folder)}") != path.stat().st_size]
        self.push_all(path for path in new if path != folder / last)
        self.push_all(path for path in new if path == folder / last)

    def write(self, path: Path, content: str, patience: float | None = None) -> None:
        self._objects.put_bytes(content.encode(), self._key(path), **_patience(patience))

    def touch(self, path: Path, patience: float | None = None) -> None:
        self.write(path, "", patience)

    def create(self, path: Path, content: str, patience: float | None = None) -> bool:
        return self._objects.create(content.encode(), self._key(path), **_patience(patience))

    def has_conditions(self) -> bool:
        return self._objects.has_conditions()

    def delete(self, paths: Iterable[Path]) -> None:
        found = list(paths)
        for path in found:
            path.unlink(missing_ok=True)
        self._objects.delete(self._key(path) for path in found)

    def delete_tree(self, folder: Path, first: str = "", keep: Iterable[str] = ()) -> None:
        """Here keys are never paths: what no copy may have (`a//b`, `../x`) goes, too."""
        key, kept = self._key(folder), {*keep}
        keys = list(self._objects.find(key))
        if first and (vouching := f"{key}/{first}") in keys:
            self._objects.delete([vouching])
        self._objects.delete(name for name in keys if name[len(key) + 1 :] not in {first, *kept})
        for path in folder.iterdir() if kept and folder.is_dir() else ():
            if path.name not in kept:
                atomic.remove(path)
        if not kept:
            atomic.remove(folder)

    @property
    def _objects(self) -> Objects:
        return objects_of(self.url)

    def _key(self, path: Path) -> str:
        key = os.path.relpath(path, self.top)
        return "" if key == "." else key

    def _get(self, path: Path, patience: float | None = None) -> bool:
        try:
            self._objects.get(self._key(path), path, **_patience(patience))
        except FileNotFoundError:
            return False
        return True


@functools.lru_cache(maxsize=8)
def objects_of(url: str) -> Objects:
    """The client of a bucket, one a process."""
    return Objects(url)


def _patience(seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else {"patience": seconds}


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _all(action: Callable[[T], None], items: list[T]) -> None:
    if items:
        with ThreadPoolExecutor(min(_AT_ONCE, len(items)), thread_name_prefix="copy") as pool:
            list(pool.map(action, items))
