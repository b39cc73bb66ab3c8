"""Each node's copy of what it needs of a `storage_path` in object storage. Everything else of the package sees the copy: a folder.

    s3://BUCKET/KEY  <->  TMPDIR/raytrain-nlp-storage-UID/s3/BUCKET/KEY

The place says what it is a copy of, so that a path may be handed from node to node like one of a shared folder. Nothing is
copied by itself: `fetch` brings what is not here, `push` sends what was made here.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raytrain_nlp.errors import StorageError
from raytrain_nlp.remote.objects import SCHEMES, Objects

_MARK = "raytrain-nlp-storage-"
_PLACE = re.compile(rf"^(?P<root>.*/{_MARK}\d+)/(?P<scheme>{'|'.join(SCHEMES)})/(?P<bucket>[^/]+)(?:/(?P<key>.*))?$")
_AT_ONCE = 8
"""Files that are on their way together."""


def is_remote(storage_path: str | Path) -> bool:
    """Does a `storage_path`, or a run's address, name object storage?"""
    return str(storage_path).partition("://")[0] in SCHEMES and "://" in str(storage_path)


def local_folder(storage_path: str | Path, base: Path | None = None) -> Path:
    """The folder of a `storage_path` on this node, absolute; of object storage the place of its copies, below `base` or where all share them."""
    if not is_remote(storage_path):
        return Path(storage_path).expanduser().resolve()
    scheme, _, rest = str(storage_path).partition("://")
    return (base or Path(tempfile.gettempdir()).resolve()) / f"{_MARK}{os.getuid()}" / scheme / rest.strip("/")


def base_of(path: str | Path) -> Path | None:
    """The folder below which a copy was put."""
    found = _PLACE.match(str(path))
    return Path(found["root"]).parent if found else None


def remote_of(path: str | Path) -> str | None:
    """The address a local path is the copy of; None where it is a folder like any other."""
    found = _PLACE.match(str(path))
    return f"{found['scheme']}://{found['bucket']}" + (f"/{found['key']}" if found["key"] else "") if found else None


def shown(path: str | Path) -> str:
    """A path as its user knows it."""
    return remote_of(path) or str(path)


def fetch(path: Path) -> bool:
    """Is the file here, now at the latest? Copies it where it is not and the storage has it."""
    if path.exists() or (place := _place(path)) is None:
        return path.exists()
    return _get(place, path)


def refetch(path: Path, patience: float | None = None) -> bool:
    """The storage's state of a file that others change: its content, or that it is not there."""
    if (place := _place(path)) is None:
        return path.exists()
    if not _get(place, path, patience):
        path.unlink(missing_ok=True)
        return False
    return True


def fetch_tree(folder: Path, wanted: Callable[[str], bool] = lambda name: True, again: bool = False) -> None:
    """The files of a folder that are not here, or are of another size; all `wanted` ones with `again`."""
    if (place := _place(folder)) is None:
        return
    objects, key = place
    cut = len(key) + 1
    missing = [
        (name, folder / name[cut:])
        for name, size in objects.find(key).items()
        if wanted(name[cut:]) and (again or not _has_size(folder / name[cut:], size))
    ]
    _all(lambda item: objects.get(*item), missing)


def push(path: Path, patience: float | None = None, to: Path | None = None) -> None:
    """Send a file; as the copy of `to`, where that is given."""
    if place := _place(to or path):
        objects, key = place
        objects.put(path, key, **_patience(patience))


def push_all(paths: Iterable[Path]) -> None:
    """Send files, several at a time."""
    _all(push, list(paths))


def push_tree(folder: Path, last: str = "", wanted: Callable[[str], bool] = lambda name: True, again: bool = False) -> None:
    """Send the files of a folder that the storage has not, or of another size, or all with `again`; the one named `last` after all others."""
    if (place := _place(folder)) is None or not folder.is_dir():
        return
    objects, key = place
    there = {} if again else objects.find(key)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    new = [name for name in names if wanted(name) and there.get(f"{key}/{name}") != (folder / name).stat().st_size]
    _all(lambda name: objects.put(folder / name, f"{key}/{name}"), [name for name in new if name != last])
    if last in new:
        objects.put(folder / last, f"{key}/{last}")


def list_tree(folder: Path) -> dict[str, int]:
    """Names below a folder in the storage, with their sizes."""
    if (place := _place(folder)) is None:
        return {}
    objects, key = place
    return {name[len(key) + 1 :]: size for name, size in objects.find(key).items()}


def delete(paths: Iterable[Path]) -> None:
    """Delete files in the storage, all of one bucket; what is here stays."""
    places = [place for path in paths if (place := _place(path))]
    if places:
        places[0][0].delete(key for _, key in places)


def delete_tree(folder: Path, first: str = "") -> None:
    """Delete a folder in the storage; the file named `first` before all others, so that what it vouches for is never half there."""
    names = list(list_tree(folder))
    if first in names:
        delete([folder / first])
    delete(folder / name for name in names if name != first)


def write_marker(path: Path, content: str = "", patience: float | None = None) -> None:
    """An object without a file."""
    if place := _place(path):
        place[0].put_bytes(content.encode(), place[1], **_patience(patience))


def modified(path: Path) -> float:
    """When an object was written, by the storage's clock: seconds since the epoch. Raises `FileNotFoundError`."""
    if (place := _place(path)) is None:
        return path.stat().st_mtime
    return place[0].modified(place[1])


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """The copies on this node are needed while inside. Who leaves last removes them; what a killed process left, goes with them."""
    if (found := _PLACE.match(str(folder))) is None:
        yield
        return
    root = Path(found["root"])
    top = root / found["scheme"] / found["bucket"]
    top.mkdir(parents=True, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to another user. Set TMPDIR to a folder of your own.")
    lock = os.open(root / f".{found['scheme']}.{found['bucket']}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    lost = False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        top.mkdir(parents=True, exist_ok=True)  # who left last may have removed it this moment
        yield
    except StorageError:
        lost = True  # what could not be sent is here alone
        raise
    finally:
        with contextlib.suppress(OSError):  # another still needs them
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not lost:
                shutil.rmtree(top, ignore_errors=True)
        os.close(lock)


def _place(path: Path) -> tuple[Objects, str] | None:
    found = _PLACE.match(str(path))
    return (_objects(f"{found['scheme']}://{found['bucket']}"), found["key"] or "") if found else None


@functools.lru_cache(maxsize=8)
def _objects(url: str) -> Objects:
    return Objects(url)


def _get(place: tuple[Objects, str], path: Path, patience: float | None = None) -> bool:
    try:
        place[0].get(place[1], path, **_patience(patience))
    except FileNotFoundError:
        return False
    return True


def _patience(seconds: float | None) -> dict[str, float]:
    return {} if seconds is None else {"patience": seconds}


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _all(action: Callable[[str], None], items: list) -> None:
    if items:
        with ThreadPoolExecutor(min(_AT_ONCE, len(items)), thread_name_prefix="copy") as pool:
            list(pool.map(action, items))
