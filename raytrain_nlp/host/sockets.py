"""Short names for TMPDIR. The path of a Unix socket has at most 107 bytes, of which Ray uses 66 below its folder.

/tmp/rtn-UID/HASH -> TMPDIR        a symbolic link: the files stay where TMPDIR says, under a path that is short enough
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

MOST_BYTES = 107
"""Bytes of a socket's path (`sun_path` in `sockaddr_un`, without the final zero)."""
RAY_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.9")
"""Most bytes of a path that Ray appends to its folder."""
_BASES = ("/tmp", "/dev/shm", "/var/tmp")
_PLAIN = re.compile(r"[\w./+\-]*", re.ASCII)
"""Characters that are safe in the command lines that Ray builds."""


def ray_folder() -> str | None:
    """The folder for the files of a Ray that is started here; None: Ray's default (`ray` below `RAY_TMPDIR` or
    `TMPDIR`) is short enough.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())
    short = short_name(folder / "ray", RAY_BYTES)
    return None if short == folder / "ray" else str(short)


def short_name(path: Path, behind: int = 0) -> Path:
    """A path below which a socket can be created: the path itself where it is short enough, otherwise the same folder
    by a link. Where no link can be made, the path is returned unchanged, and creating the socket will fail.

    Args:
        behind: bytes of the socket's path below `path`.
    """
    if len(os.fsencode(path)) + behind <= MOST_BYTES and _PLAIN.fullmatch(str(path)):
        return path
    folder = path.parent
    for base in map(Path, _BASES):
        link = base / f"rtn-{os.getuid()}" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        if _linked(link, folder):
            return link / path.name
    return path


def _linked(link: Path, folder: Path) -> bool:
    """Make `link` lead to the folder, unless it does; False where it cannot, or belongs to another user. It is replaced
    in one step, because several processes may do so.
    """
    try:
        link.parent.mkdir(mode=0o700, exist_ok=True)
        if link.parent.lstat().st_uid != os.getuid():
            return False
        if not link.is_symlink():
            for old in filter(_leads_nowhere, link.parent.iterdir()):
                old.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            new = link.with_name(f".{link.name}.{os.getpid()}")
            new.symlink_to(folder.absolute())
            os.replace(new, link)
        return link.readlink() == folder.absolute()
    except OSError:
        return False


def _leads_nowhere(link: Path) -> bool:
    """Is this a link to a TMPDIR that no longer exists?"""
    return link.is_symlink() and not link.exists()
