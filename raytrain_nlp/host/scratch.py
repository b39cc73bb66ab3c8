"""Folders on a node's own disk. A process that was killed leaves its own behind: the next one on the node removes
it.
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
    """A folder of this process while inside, where `TMPDIR` says. Its lock, which the kernel drops with the process,
    says that it is used.

    Raises:
        RunError: another user has made the folder of these folders.
    """
    root = Path(tempfile.gettempdir()) / f"raytrain-nlp-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise RunError(f"{root} belongs to another user. Set TMPDIR to a folder of your own.")
    with _locked(root):  # between its making and its lock, nobody takes a folder for deserted
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
        with contextlib.suppress(OSError):  # held by its process, or gone this moment
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
    """The descriptor that holds the lock on a folder until it is closed. Raises `OSError` where `LOCK_NB` finds it
    held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
