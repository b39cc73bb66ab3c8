"""A thread that looks at something now and then. What it meets is told, and it goes on looking: no thread of this
package ends silently.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


def reason_of(error: BaseException) -> str:
    """An error as part of a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def looking(
    name: str,
    look: Callable[[], object],
    every_s: float,
    tell: Callable[[str], None],
    *,
    at_end: bool = False,
    join_s: float = 5.0,
) -> Iterator[threading.Event]:
    """While inside, a thread calls `look` every so many seconds, until that returns something true. Yields what is set
    when the block ends.

    Args:
        tell: is given what `look` has raised, once each time it begins to fail; it is tried again. What `tell` raises
            is passed over.
        at_end: look once more when the block ends.
        join_s: how long the end waits for a look that hangs.
    """
    over = threading.Event()

    def run() -> None:
        failed = False
        while True:
            ended = over.wait(every_s)
            if ended and not at_end:
                return
            try:
                if look():
                    return
                failed = False
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told and tried again
                if not failed and (at_end or not over.is_set()):
                    with contextlib.suppress(Exception):
                        tell(reason_of(error))
                failed = True
            if ended:
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join(join_s)
