"""Threads that check something at intervals. An exception in one is reported, and the thread goes on: no thread of this
package ends silently.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


def reason_of(error: BaseException) -> str:
    """An error as part of a line: its type and the first line of its message."""
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
    """While inside, a thread calls `look` every `every_s` seconds, until `look` returns something true. Yields an event
    that is set when the block ends.

    Args:
        tell: called with the reason when `look` begins to raise exceptions; the thread goes on. Exceptions of `tell`
            are ignored.
        at_end: call `look` once more when the block ends.
        join_s: seconds that the end of the block waits for the thread.
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
            except Exception as error:  # noqa: BLE001 - it is reported, and the thread goes on
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
