"""Temporary folders on a node's own disk. A killed process leaves its folder behind; the next process on the node
removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raytrain_nlp.errors import RunError


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder below `TMPDIR` for this process while inside. A lock on it, which the kernel releases when the process
    ends, shows that it is in use.

    Raises:
        RunError: the parent folder belongs to another user.
    """
    root = Path(tempfile.gettempdir()) / f"raytrain-nlp-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise RunError(f"{root} belongs to another user. Set TMPDIR to a folder of your own.")
    with _locked(root):  # nobody takes a new folder for deserted before it is locked
        _remove_deserted(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        held = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_deserted(root: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # its process holds the lock, or has just removed it
            held = _lock(folder, fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    held = _lock(folder)
    try:
        yield
    finally:
        os.close(held)


def _lock(folder: Path, mode: int = 0) -> int:
    """Lock a folder until the returned descriptor is closed. With `LOCK_NB`, raises `OSError` where another process
    holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
