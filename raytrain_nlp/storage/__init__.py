"""Files that others see whole or not at all, in a folder or a bucket (`s3://`, `gs://`): one interface, `Storage`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raytrain_nlp.storage.base import Storage as Storage
from raytrain_nlp.storage.bucket import Bucket
from raytrain_nlp.storage.folder import Folder
from raytrain_nlp.storage.objects import SCHEMES

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/.*)?")


def open_storage(address: str | Path, base: Path | None = None) -> Storage:
    """The storage of a job's `storage_path`, or of the address of a run.

    Args:
        base: where copies of a bucket lie; None: where all processes of this user share them.
    """
    scheme, separator, _ = str(address).partition("://")
    if separator and scheme in SCHEMES:
        return Bucket.at(str(address), base)
    return Folder(Path(address).expanduser().resolve())


def storage_of(path: Path | str) -> Storage:
    """The storage of a path on this node, which a driver or another node has handed over."""
    return Bucket.of_copy(Path(path)) or Folder(Path(path))


def shown(path: Path | str) -> str:
    """A path on this node as its user knows it."""
    return storage_of(path).address_of(Path(path))


def problem_of_address(address: str) -> str | None:
    """What is wrong with the text of a `storage_path`, and what to do, as `WHAT || TODO`; None where it may be one."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme not in SCHEMES:
        known = " or ".join(f"{scheme}://" for scheme in SCHEMES)
        return f"must be a folder all nodes share, or start with {known} || Mount the bucket, or use NFS."
    if separator and not _BUCKET.fullmatch(rest.rstrip("/")):
        return "names no bucket || Write s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; keys come from the environment."
    if separator:
        return None
    if os.path.expanduser(address).startswith("~"):
        return "names a user this machine does not have || Write the path out."
    if "\0" in address:
        return "has a NUL character || Correct it."
    if any(len(os.fsencode(part)) > 255 for part in address.split("/")):
        return "has a part of more than 255 bytes || Shorten it."
    return None
