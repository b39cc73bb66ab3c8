"""Short names for TMPDIR: a Unix socket's path has at most 107 bytes, and Ray puts 66 behind the folder that it is
given.

/tmp/rtn-UID/HASH -> TMPDIR        a link: what lies there lies where TMPDIR says, under a name that fits
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

MOST_BYTES = 107
"""Of a socket's path (`sun_path` of `sockaddr_un`, without its end)."""
RAY_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.9")
"""What Ray puts behind its folder, at most."""
_BASES = ("/tmp", "/dev/shm", "/var/tmp")
_PLAIN = re.compile(r"[\w./+\-]*", re.ASCII)
"""What Ray's command lines carry without harm."""


def ray_folder() -> str | None:
    """Where a Ray that is started here should have its files; None: where it has them by itself (`RAY_TMPDIR`, else
    `TMPDIR`, as `/ray`).
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())
    short = short_name(folder / "ray", RAY_BYTES)
    return None if short == folder / "ray" else str(short)


def short_name(path: Path, behind: int = 0) -> Path:
    """A path under which a socket `behind` bytes further down can be made: itself where it fits, else through a link to
    its folder.

    Where no link can be made, too, it is the path itself, and whoever makes the socket says why it cannot.
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
    """Is there now a link to the folder that is nobody else's? Made at once, for several processes may make it."""
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
    """Is a link left of a TMPDIR that is gone?"""
    return link.is_symlink() and not link.exists()
