"""Names that come from storage (keys of a bucket, paths in a manifest, anything in JSON) become paths here and nowhere
else.

Whoever can write to a storage path could otherwise have files read, written and deleted outside of it. Standard library
only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from raytrain_nlp.errors import StorageError

_LONGEST = 255
"""Bytes of one part."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UnsafeName(StorageError):
    """A name that came from storage leads, or may lead, out of its folder."""


def what_is_wrong(name: object) -> str | None:
    """Why a name from storage is no relative path of plain parts, or None."""
    if not isinstance(name, str):
        return f"is no text ({name!r:.80})"
    if not name:
        return "is empty"
    shown = f"{name!r:.120}"
    if _CONTROL.search(name) or "\\" in name:
        return f"has a character that no name here has ({shown})"
    if name.startswith("/"):
        return f"is an absolute path ({shown})"
    if ".." in (parts := name.split("/")):
        return f"leads out of its folder ({shown})"
    if any(part in ("", ".") for part in parts):
        return f"has a part that is no name ({shown})"
    return (
        f"is longer than a name may be ({shown})" if max(len(os.fsencode(part)) for part in parts) > _LONGEST else None
    )


def below(folder: Path, name: object) -> Path:
    """The path of a name from storage below `folder`, whether there is such a file or not.

    Raises `UnsafeName` where the name is no plain relative path, or a link on its way leads out of the folder.
    """
    if wrong := what_is_wrong(name):
        raise UnsafeName(f"{folder}: a name in it {wrong}.")
    path = folder / str(name)
    if not os.path.realpath(path).startswith(os.path.realpath(folder).rstrip("/") + "/"):
        raise UnsafeName(
            f"{folder}: a name in it goes through a link that leads out of its folder ({str(name)!r:.120})."
        )
    return path


def part(name: object) -> str:
    """A name from storage that is one part of a path. Raises `UnsafeName`."""
    wrong = what_is_wrong(name)
    if wrong or "/" in str(name):
        raise UnsafeName(f"a name {wrong or f'is more than one part of a path ({name!r:.120})'}.")
    return str(name)
