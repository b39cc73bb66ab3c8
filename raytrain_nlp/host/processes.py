"""Python processes that this package starts. They do not import from the current directory, where a user may have a
file such as `torch.py`.
"""

from __future__ import annotations

import sys

_WITHOUT_HERE = "import sys; sys.path[:] = [path for path in sys.path if path]"


def python_command(program: str, *arguments: str) -> list[str]:
    """The command line of a process that runs `program`, Python source code, with arguments."""
    return [sys.executable, "-c", f"{_WITHOUT_HERE}\n{program}", *arguments]
