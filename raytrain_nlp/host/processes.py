"""Python processes of this package: started without the current directory among what they import from, where a user may
have a `torch.py`.
"""

from __future__ import annotations

import sys

_WITHOUT_HERE = "import sys; sys.path[:] = [path for path in sys.path if path]"


def python_command(program: str, *arguments: str) -> list[str]:
    """The command of a process that runs a program's text."""
    return [sys.executable, "-c", f"{_WITHOUT_HERE}\n{program}", *arguments]
