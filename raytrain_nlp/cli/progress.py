"""Shows the progress of the command line to users who call the Python API in a terminal or a notebook."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


def with_progress(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a verb so that it shows its progress if it is called in a terminal or a notebook without an
    `observer`.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("observer") is not None or not is_watched():
            return function(*args, **kwargs)
        with _observer_of(function)(kwargs.get("verbose", False)) as observer:
            return function(*args, **{**kwargs, "observer": observer})

    return call


def is_watched() -> bool:
    """Is standard error a terminal, or is this a notebook? Elsewhere (a script's log, a test) the API prints
    nothing.
    """
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return notebook or (sys.stderr is not None and sys.stderr.isatty())


def _observer_of(function: Callable[..., Any]) -> Any:
    if function.__name__ == "sweep":
        from raytrain_nlp.cli.sweep.table import TerminalSweepObserver

        return TerminalSweepObserver
    from raytrain_nlp.cli.terminal import TerminalObserver

    return TerminalObserver
