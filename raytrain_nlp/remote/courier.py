"""A thread that carries small files between a node and object storage, so that nobody waits for the storage while training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from raytrain_nlp.errors import StorageError
from raytrain_nlp.remote.mirror import push
from raytrain_nlp.remote.objects import PATIENCE_S

_PATIENCE_S = 20.0
"""Of a round of the thread: the next one tries again anyway."""
_SHARE = 20
"""A file that takes a second to send is sent every so many seconds at most."""


class Courier:
    """Calls `carry(patience)` every `every_s` seconds while inside, and once more, with all patience, at the end.

    Args:
        carry: sends and brings what has changed. What it cannot carry is told once, and tried again in the next round.
    """

    def __init__(self, carry: Callable[[float], None], warn: Callable[[str], None], every_s: float = 2.0):
        self._carry, self._warn, self._every_s = carry, warn, every_s
        self._over, self._one = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Courier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Carry now. Raises `StorageError` where the storage does not answer for minutes."""
        with self._one:
            self._carry(PATIENCE_S)

    def _run(self) -> None:
        told = False
        while not self._over.wait(self._every_s):
            try:
                with self._one:
                    self._carry(_PATIENCE_S)
                told = False
            except StorageError as error:
                if not told:
                    self._warn(f"{error}. Training goes on; it is tried again.")
                told = True


class Outbox:
    """Remembers which content of a file has been sent."""

    def __init__(self) -> None:
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
        push(path, patience)
        self._sent[path] = state
        self._next[path] = time.monotonic() + _SHARE * (time.monotonic() - now)
