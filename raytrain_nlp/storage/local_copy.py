"""Each node's copy of what it needs of a `storage_path` in object storage. Everything else of the package sees the
copy: a folder.

Nothing is copied by itself: `fetch` brings what is not here, `push` sends what was made here. On a folder like any
other, all of this does nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from raytrain_nlp.storage import atomic
from raytrain_nlp.storage.bucket import Objects
from raytrain_nlp.storage.locations import parts_of
from raytrain_nlp.storage.names import below

T = TypeVar("T")
_AT_ONCE = 8
"""Files that are on their way together."""


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
    """The files of a folder that are not here, or are of another size; all `wanted` ones with `again`.

    Raises `UnsafeName` for a key that would be a file outside of the folder; nothing has been copied then.
    """
    if (place := _place(folder)) is None:
        return
    objects, key = place
    missing = []
    for name, size in objects.find(key).items():
        inner = name[len(key) + 1 :]
        if wanted(inner):
            path = below(folder, inner)
            if again or not _has_size(path, size):
                missing.append((name, path))
    _all(lambda item: objects.get(*item), missing)


def push(path: Path, patience: float | None = None, to: Path | None = None) -> None:
    """Send a file; as the copy of `to`, where that is given."""
    if place := _place(to or path):
        objects, key = place
        objects.put(path, key, **_patience(patience))


def push_all(paths: Iterable[Path]) -> None:
    """Send files, several at a time."""
    _all(push, list(paths))


def push_tree(
    folder: Path, last: str = "", wanted: Callable[[str], bool] = lambda name: True, again: bool = False
) -> None:
    """Send the files of a folder that the storage has not, or of another size, or all with `again`; the one named
    `last` after all others.
    """
    if (place := _place(folder)) is None or not folder.is_dir():
        return
    objects, key = place
    there = {} if again else objects.find(key)
    names = [
        str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
    ]
    new = [name for name in names if wanted(name) and there.get(f"{key}/{name}") != (folder / name).stat().st_size]
    _all(lambda name: objects.put(folder / name, f"{key}/{name}"), [name for name in new if name != last])
    if last in new:
        objects.put(folder / last, f"{key}/{last}")


def list_tree(folder: Path) -> dict[str, int]:
    """Names below a folder in the storage, with their sizes. Raises `UnsafeName` where one is no path below the
    folder.
    """
    if (place := _place(folder)) is None:
        return {}
    objects, key = place
    sizes = {name[len(key) + 1 :]: size for name, size in objects.find(key).items()}
    for name in sizes:
        below(folder, name)
    return sizes


def delete(paths: Iterable[Path]) -> None:
    """Delete files in the storage, all of one bucket; what is here stays."""
    places = [place for path in paths if (place := _place(path))]
    if places:
        places[0][0].delete(key for _, key in places)


def delete_tree(folder: Path, first: str = "", keep: str = "") -> None:
    """Delete a folder in the storage; the file named `first` before all others, so that what it vouches for is never
    half there.

    Here keys are never paths: what no copy may have (`a//b`, `../x`) goes, too.
    """
    if (place := _place(folder)) is None:
        return
    objects, key = place
    keys = list(objects.find(key))
    if (vouching := f"{key}/{first}") in keys:
        objects.delete([vouching])
    objects.delete(name for name in keys if name not in (vouching, f"{key}/{keep}"))


def create(path: Path, content: str, patience: float | None = None) -> bool:
    """Make a file, or an object, where there is none: did this call make it? Of several hosts that try, one does."""
    if place := _place(path):
        return place[0].create(content.encode(), place[1], **_patience(patience))
    return atomic.create(path, content)


def has_conditions(path: Path) -> bool:
    """Is `create` a step of its own where this path lies?"""
    place = _place(path)
    return place is None or place[0].has_conditions()


def write_marker(path: Path, content: str = "", patience: float | None = None) -> None:
    """An object without a file."""
    if place := _place(path):
        place[0].put_bytes(content.encode(), place[1], **_patience(patience))


def modified(path: Path) -> float:
    """When an object was written, by the storage's clock: seconds since the epoch. Raises `FileNotFoundError`."""
    if (place := _place(path)) is None:
        return path.stat().st_mtime
    return place[0].modified(place[1])


def _place(path: Path) -> tuple[Objects, str] | None:
    parts = parts_of(path)
    return (_objects(parts[0]), parts[1]) if parts else None


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


def _all(action: Callable[[T], None], items: list[T]) -> None:
    if items:
        with ThreadPoolExecutor(min(_AT_ONCE, len(items)), thread_name_prefix="copy") as pool:
            list(pool.map(action, items))
