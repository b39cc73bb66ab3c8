"""What a user should know, said once in a process, however often it happens."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

_said: set[str] = set()
_one = threading.Lock()


def _print(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def once(text: str, say: Callable[[str], None] = _print, key: str | None = None) -> None:
    """Say a text unless it has been said; on standard error, which a worker's log keeps.

    Args:
        key: what counts as the same, where the text has a part that changes.
    """
    with _one:
        if (key or text) in _said:
            return
        _said.add(key or text)
    say(text)
