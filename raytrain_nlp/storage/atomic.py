"""Files and folders that others see whole or not at all, on disk, with the permissions the user's umask gives. Standard
library only.

A shared run is read by colleagues: nothing here goes through `tempfile`, which makes everything for its owner alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_OLD = "old-"
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_LONGEST = 200
"""Bytes of a name that a temporary one keeps: file systems take 255."""


def temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, for what is to take its place."""
    kept = path.name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    return path.with_name(f".{kept}.{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w", durable: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """A new file, open for writing, that takes the place of `path` at the end and is on disk then. Where the block
    raises, `path` stays as it was.

    Args:
        durable: False for what is written again in a moment: after a loss of power the file may then be empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    text = {} if "b" in mode else {"encoding": "utf-8"}
    try:
        with open(temporary, mode.replace("w", "x"), **{**text, **options}) as file:  # exclusive: no link is followed
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create(path: Path, content: str) -> bool:
    """Make a file with all of its content, where there is none: did this call make it? Of several hosts that try, one
    does.

    A link to a complete file is one step on every file system that has links, NFS included, whose answer may get lost:
    then the number of links tells. Elsewhere the file is opened exclusively, and is empty for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink == 2
        except OSError as error:
            if temporary.stat().st_nlink == 2:
                return True
            if error.errno not in _NO_LINKS:
                raise
            return _open_exclusively(path, content)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _open_exclusively(path: Path, content: str) -> bool:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, for other nodes and users as readable as `parent` is; removed at the end."""
    folder = parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def apply_umask(path: Path) -> None:
    """Give a file the permissions that `open` would have given it: safetensors makes its files for their owner
    alone.
    """
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """Of this process. Linux shows it; elsewhere it has to be set to be seen, which other threads would notice."""
    with (
        contextlib.suppress(OSError, StopIteration, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as lines,
    ):
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync_dir(path: Path) -> None:
    """Make a rename in `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path, files: bool = True) -> None:
    """Bring a folder to disk: its files, unless their writers have done so, then the folders in it, the innermost
    first.
    """
    for place, _, names in os.walk(folder, topdown=False):
        for name in names if files else ():
            path = os.path.join(place, name)
            if not os.path.islink(path):
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        fsync_dir(Path(place))


def replace_folder(staging: Path, target: Path) -> None:
    """Put a complete folder in the place of `target`, which may exist. A kill leaves the old one or the new one.

    Where the file system cannot exchange two names (NFS, for one), the old folder is put aside first: `recover_folder`
    brings it back after a kill between the two renames.
    """
    for path in staging.rglob("*"):
        if path.is_file() and not path.is_symlink():
            apply_umask(path)
    fsync_tree(staging)
    recover_folder(target)
    if not os.path.lexists(target):
        staging.rename(target)
        fsync_dir(target.parent)
        return
    if not _exchange(staging, target):
        old = target.with_name(f".{target.name}-{_OLD}{uuid.uuid4().hex[:8]}")
        target.rename(old)
        staging.rename(target)
        staging = old
    fsync_dir(target.parent)
    remove(staging)


def recover_folder(target: Path) -> None:
    """Bring back a folder that a killed `replace_folder` had put aside, and remove those it had no time to remove. Only
    while nobody writes.
    """
    aside = sorted(target.parent.glob(f".{glob.escape(target.name)}-{_OLD}*"), key=lambda path: path.lstat().st_mtime)
    if aside and not os.path.lexists(target):
        aside.pop().rename(target)
        fsync_dir(target.parent)
    for path in aside:
        remove(path)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder to where there is none. Links are left out: what they lead to may be a file of others, and the copy
    may be published.
    """
    shutil.copytree(
        source,
        target,
        ignore=lambda place, names: [name for name in names if os.path.islink(os.path.join(place, name))],
    )


def remove_whole(path: Path) -> None:
    """Remove a folder so that a kill half-way leaves nothing that is half there: its name goes first."""
    if os.path.lexists(path):
        aside = path.with_name(f".deleted-{path.name[:_LONGEST]}-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        remove(aside)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, never what a link leads to. What cannot be removed stays."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no Linux, or an old C library
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))
