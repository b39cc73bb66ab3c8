"""Messages to the user that are shown once in a process, however often their reason occurs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from raytrain_nlp.redaction import masked

_said: set[str] = set()
_one = threading.Lock()


def _print(text: str) -> None:
    print(f"warning: {masked(text)}", file=sys.stderr, flush=True)


def once(text: str, say: Callable[[str], None] = _print, key: str | None = None) -> None:
    """Show a text, unless it was shown before in this process.

    Args:
        say: shows the text; default: as a warning on standard error, which is in a worker's log too.
        key: identifies the message where the text has a part that changes.
    """
    with _one:
        if (key or text) in _said:
            return
        _said.add(key or text)
    say(text)
