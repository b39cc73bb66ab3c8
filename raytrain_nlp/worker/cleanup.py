"""How a run lets go of what it has opened, whether it ends well or with an error: its process may go on to another
run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


def letting_go(*actions: Callable[[], None]) -> Callable[..., None]:
    """For `ExitStack.push`: does all of these. After an error, which is what the user is to be told, what they raise is
    passed over.
    """

    def end(kind: type[BaseException] | None, *_: Any) -> None:
        for action in actions:
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                action()

    return end
