"""A thread that carries small files between a node and object storage, so that nobody waits for the storage while
training.

What a round raises (a storage that is away, a full disk, a locked database) is told by `warn`, once each time it
begins, and the next round tries again. What still cannot be carried at the end is raised by `flush`, in the thread of
who waits for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from raytrain_nlp.errors import StorageError
from raytrain_nlp.host.threads import looking, reason_of
from raytrain_nlp.storage.base import Storage
from raytrain_nlp.storage.objects import PATIENCE_S

_PATIENCE_S = 20.0
"""Of a round of the thread: the next one tries again anyway."""
_ATTEMPTS, _PAUSE_S = 5, 1.0
"""At the end, for what this node cannot give at a moment."""
_SHARE = 20
"""A file that takes a second to send is sent every so many seconds at most."""


class Courier:
    """Calls `carry(patience)` every `every_s` seconds while inside, and once more, with all patience, at the end.

    Args:
        carry: sends and brings what has changed. What it cannot carry is told once, and tried again in the next round.
    """

    def __init__(self, carry: Callable[[float], None], warn: Callable[[str], None], every_s: float = 2.0):
        self._carry, self._warn, self._every_s = carry, warn, every_s
        self._one = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Courier:
        self._stack.enter_context(looking("courier", self._look, self._every_s, self._tell, join_s=2 * PATIENCE_S))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.flush()

    def _tell(self, reason: str) -> None:
        self._warn(f"{reason.removeprefix('StorageError: ')}. Training goes on; it is tried again.")

    def flush(self) -> None:
        """Carry now. Raises `StorageError` where the storage does not answer for minutes, or this node cannot give what
        is to be sent (a full disk, a locked database), whatever its own error was."""
        with self._one:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._carry(PATIENCE_S)
                except StorageError:
                    raise
                except Exception as error:
                    if attempt == _ATTEMPTS - 1:
                        raise StorageError(
                            f"what the run has written cannot be sent to the storage: {reason_of(error)}"
                        ) from error
                    time.sleep(_PAUSE_S)

    def _look(self) -> None:
        with self._one:
            self._carry(_PATIENCE_S)


class Outbox:
    """Remembers which content of a file has been sent."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._sent: dict[Path, tuple[int, int]] = {}
        self._next: dict[Path, float] = {}

    def send(self, path: Path, patience: float) -> None:
        """Send a file that has changed since. A large one less often, unless all patience is allowed."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        state = (found.st_mtime_ns, found.st_size)
        now = time.monotonic()
        if self._sent.get(path) == state or (patience < PATIENCE_S and now < self._next.get(path, 0)):
            return
        self._storage.push(path, patience)
        self._sent[path] = state
        self._next[path] = time.monotonic() + _SHARE * (time.monotonic() - now)
