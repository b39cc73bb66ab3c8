"""The objects of a bucket (`s3://`, `gs://`): files up and down. What fails for a moment is tried again, with growing
pauses.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from raytrain_nlp.errors import StorageError
from raytrain_nlp.storage.responses import is_final, is_there, knows_no_conditions

SCHEMES = {"s3": "s3fs", "gs": "gcsfs"}
"""Kinds of object storage, with the package that fsspec needs for each."""
PATIENCE_S = 300.0
"""How long a request is tried again."""
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 15.0
_BULK = 1_000
_IN_PARTS = 50 * 2**20
"""Files from this size on may travel in parts, in bytes."""
_PART_ATTEMPTS = 5
"""A part is tried again by itself: of a thousand parts one always fails."""
_READ_TIMEOUT_S, _CONNECT_TIMEOUT_S = 60, 10
T = TypeVar("T")


class Objects:
    """All objects of one bucket, by their keys.

    Args:
        url: `SCHEME://BUCKET`.

    Methods raise `FileNotFoundError` where there is no such object, `StorageError` where the storage refuses, or has
    failed for `patience` seconds.
    """

    def __init__(self, url: str):
        self.url = url
        self._scheme, _, self._bucket = url.partition("://")
        self._conditions: bool | None = None

    def put(self, file: Path, key: str, patience: float = PATIENCE_S) -> None:
        """The content of a file as an object."""
        attempts = _PART_ATTEMPTS if file.stat().st_size >= _IN_PARTS else 1
        self._try(lambda fs: fs.put_file(str(file), self._path(key)), f"write {key}", patience, attempts)

    def put_bytes(self, content: bytes, key: str, patience: float = PATIENCE_S) -> None:
        self._try(lambda fs: fs.pipe_file(self._path(key), content), f"write {key}", patience)

    def create(self, content: bytes, key: str, patience: float = PATIENCE_S) -> bool:
        """An object, where there is none of this key: did this call make it? Of several that try, one does
        (`If-None-Match: *`, or generation 0).

        Where the storage `has_conditions`; elsewhere what is there is written over, and the answer is True.
        """
        tries = 0

        def put(fs: Any) -> bool:
            nonlocal tries
            tries += 1
            try:
                fs.pipe_file(self._path(key), content, **({"mode": "create"} if conditions else {}))
            except Exception as error:
                if is_there(error):
                    return False
                raise
            return True

        conditions = self.has_conditions(patience)
        made = self._try(put, f"write {key}", patience)
        return made or (
            tries > 1 and self.get_bytes(key, patience) == content
        )  # the answer to an earlier try may have been lost

    def has_conditions(self, patience: float = PATIENCE_S) -> bool:
        """Does the storage refuse to make an object that is there? Not every server that speaks S3 looks at the
        condition; asked once.
        """
        if self._conditions is None:
            probe = self._path(f".raytrain-nlp-{uuid.uuid4().hex}")
            try:
                self._try(lambda fs: fs.pipe_file(probe, b"", mode="overwrite"), "write a probe", patience)
                self._try(lambda fs: fs.pipe_file(probe, b"", mode="create"), "write a probe", patience)
                self._conditions = False
            except StorageError as error:
                self._conditions = is_there(error)
                if not self._conditions and not knows_no_conditions(error.__cause__):
                    self._conditions = None
                    raise
            finally:
                with contextlib.suppress(FileNotFoundError, StorageError):
                    self._try(lambda fs: fs.rm_file(probe), "delete a probe", patience)
        return self._conditions

    def get(self, key: str, file: Path, patience: float = PATIENCE_S) -> None:
        """An object as a file, of which nothing is to be seen before it is whole."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            self._try(lambda fs: fs.get_file(self._path(key), str(temporary)), f"read {key}", patience)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def get_bytes(self, key: str, patience: float = PATIENCE_S) -> bytes:
        return self._try(lambda fs: fs.cat_file(self._path(key)), f"read {key}", patience)

    def find(self, prefix: str = "", patience: float = PATIENCE_S) -> dict[str, int]:
        """Keys below a prefix (a folder, without the last slash), with their sizes in bytes."""

        def look(fs: Any) -> dict[str, Any]:
            fs.invalidate_cache()
            return fs.find(self._path(prefix), detail=True)

        found = self._try(look, f"list {prefix}", patience)
        cut = len(self._bucket) + 1
        return {
            path[cut:]: int(info.get("size") or 0)
            for path, info in found.items()
            if path[cut:] and not path.endswith("/")
        }

    def modified(self, key: str) -> float:
        """When an object was written, by the clock of the storage: seconds since the epoch."""

        def look(fs: Any) -> Any:
            fs.invalidate_cache()
            return fs.modified(self._path(key))

        return self._try(look, f"read {key}").timestamp()

    def delete(self, keys: Iterable[str], patience: float = PATIENCE_S) -> None:
        """Delete objects, up to a thousand with one request; one that is gone already is no error."""
        paths = [self._path(key) for key in keys]
        for start in range(0, len(paths), _BULK):
            some = paths[start : start + _BULK]
            with contextlib.suppress(FileNotFoundError):
                self._try(functools.partial(_remove, paths=some), f"delete {some[0]}", patience)

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{key}" if key else self._bucket

    def _try(self, action: Callable[[Any], T], what: str, patience: float = PATIENCE_S, attempts: int = 1) -> T:
        end, pause = time.monotonic() + patience, _FIRST_PAUSE_S
        while True:
            try:
                return action(_filesystem(self._scheme, os.getpid(), attempts))
            except FileNotFoundError:
                raise
            except Exception as error:
                if is_final(error) or time.monotonic() + pause > end:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                    raise StorageError(f"{self.url} cannot {what}: {type(error).__name__}: {reason}") from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _MAX_PAUSE_S)


def _remove(fs: Any, paths: list[str]) -> None:
    """`rm` takes `*`, `?` and `[` in a name for patterns, and deletes what they match."""
    if any(char in path for path in paths for char in "*?["):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
    else:
        fs.rm(paths)


_making = threading.Lock()


def _filesystem(scheme: str, pid: int, attempts: int) -> Any:
    with _making:
        return _make_filesystem(scheme, pid, attempts)


@functools.lru_cache(maxsize=4)
def _make_filesystem(scheme: str, pid: int, attempts: int) -> Any:
    """fsspec's file system, of this process alone: a fork must not use the connections of its parent."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        retries = {"total_max_attempts": attempts, "mode": "standard"}
        options["config_kwargs"] = {
            "read_timeout": _READ_TIMEOUT_S,
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "retries": retries,
        }
    filesystem = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        # s3fs's own; botocore tries a request again, and `Objects` the whole, for as long as its caller has patience
        filesystem.retries = 1
    return filesystem
