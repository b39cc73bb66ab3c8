"""Writing to a disk that may be full, read-only or away for a moment: what passes is waited out, what does not is one
line with the path, the reason and the room that is left.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raytrain_nlp.errors import DiskError

T = TypeVar("T")
_PASSING = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOLCK, errno.ETIMEDOUT, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET, getattr(errno, "EREMOTEIO", errno.EIO),
}  # fmt: skip
"""What a network file system says when its server restarts."""
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room, or ask for a larger quota",
    errno.EROFS: "Mount it for writing",
    errno.EACCES: "Give yourself the right to write there",
    errno.EPERM: "Give yourself the right to write there",
    errno.EFBIG: "Raise the largest size of a file (ulimit -f)",
    errno.EMFILE: "Raise the number of open files (ulimit -n 65536)",
    errno.ENFILE: "Raise the number of open files (fs.file-max)",
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust, of which safetensors is made, ends what the system says."""


def patiently(write: Callable[[], T], path: Path) -> T:
    """What `write` returns. It is called again, with growing pauses, half a minute in all, while the disk says what may
    pass; so it must be one that may be repeated.

    Args:
        path: what is written, for the message.

    Raises:
        DiskError: the disk does not take it.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return write()
        except Exception as error:
            if (code := code_of(error)) is None:
                raise
            if pause is None or code not in _PASSING:
                raise DiskError(why_not_written(path, code, ", then continue with --resume")) from error
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def code_of(error: BaseException) -> int | None:
    """The system's number of an error, also of one that safetensors has turned into its own; None for others."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def of_disk(error: OSError) -> str | None:
    """One line for an error that a disk has raised about a file, wherever it was raised; None for others."""
    code = error.errno
    if code is None or code in (errno.EACCES, errno.EPERM) or code not in _PASSING | _REMEDIES.keys():
        return None
    named = next((name for name in (error.filename2, error.filename) if isinstance(name, str)), None)
    return why_not_written(Path(named) if named else Path.cwd(), code)


def why_not_written(path: Path, code: int, then: str = "") -> str:
    """One line: path, reason, room, and what to do.

    Args:
        then: what is done behind that, a part of a sentence.
    """
    todo = _REMEDIES.get(code, "Look at the disk or its server")
    return f"{path} cannot be written: {os.strerror(code)}{_room(path, code)}. {todo}{then}."


def _room(path: Path, code: int) -> str:
    """What the file system has left, where that is the question."""
    if code not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    try:
        found = os.statvfs(next(place for place in (path, *path.parents) if place.exists()))
    except (OSError, StopIteration):
        return ""
    if not found.f_favail and found.f_files:
        return " (it has room for no more files: no inodes are left)"
    return f" ({found.f_bavail * found.f_frsize / 1e6:,.1f} MB are free)"
