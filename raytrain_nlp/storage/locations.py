"""Where copies of object storage lie on a node.

    s3://BUCKET/KEY  <->  TMPDIR/raytrain-nlp-storage-UID/s3/BUCKET/KEY

The place says what it is a copy of, so that a path may be handed from node to node like one of a shared folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raytrain_nlp.errors import StorageError
from raytrain_nlp.storage.bucket import SCHEMES

_MARK = "raytrain-nlp-storage-"
_PLACE = re.compile(rf"^(?P<root>.*/{_MARK}\d+)/(?P<scheme>{'|'.join(SCHEMES)})/(?P<bucket>[^/]+)(?:/(?P<key>.*))?$")


def is_remote(storage_path: str | Path) -> bool:
    """Does a `storage_path`, or a run's address, name object storage?"""
    return str(storage_path).partition("://")[0] in SCHEMES and "://" in str(storage_path)


def local_folder(storage_path: str | Path, base: Path | None = None) -> Path:
    """The folder of a `storage_path` on this node, absolute; of object storage the place of its copies, below `base` or
    where all share them.
    """
    if not is_remote(storage_path):
        return Path(storage_path).expanduser().resolve()
    scheme, _, rest = str(storage_path).partition("://")
    return (base or Path(tempfile.gettempdir()).resolve()) / f"{_MARK}{os.getuid()}" / scheme / rest.strip("/")


def remote_of(path: str | Path) -> str | None:
    """The address a local path is the copy of; None where it is a folder like any other."""
    parts = parts_of(path)
    return "/".join(filter(None, parts)) if parts else None


def shown(path: str | Path) -> str:
    """A path as its user knows it."""
    return remote_of(path) or str(path)


def parts_of(path: str | Path) -> tuple[str, str] | None:
    """Bucket (with its scheme) and key a local path is the copy of."""
    found = _PLACE.match(str(path))
    return (f"{found['scheme']}://{found['bucket']}", found["key"] or "") if found else None


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """The copies on this node are needed while inside. Who leaves last removes them; what a killed process left, goes
    with them.
    """
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
