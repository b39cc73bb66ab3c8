"""The user's own code: found by `package.module:name`, and told from others' by its file."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from raytrain_nlp.errors import InputError, Problem


@dataclass(frozen=True)
class UserObject:
    """A class or function of the user's; a plain value that travels to other processes and is imported there."""

    name: str
    """`package.module:name`."""
    where: str
    """The job's key that names it."""
    folder: str
    """Where modules are looked for besides what is installed: the driver's current directory, as `python -m` does."""

    def load(self) -> Any:
        """Import it. Raises `InputError`."""
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        module, _, attribute = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # whatever the user's module raises when it is imported
            what = f"cannot be imported ({self.name}: {describe(error)})"
            raise InputError(Problem(self.where, what, "Check the name; modules are looked for in the current directory.")) from error
        return found

    def fingerprint(self) -> str:
        """Hash of the source of its module."""
        found = self.load()
        try:
            source = inspect.getsource(inspect.getmodule(found))
        except (OSError, TypeError):
            source = repr(found)
        return hashlib.sha256(source.encode()).hexdigest()[:16]


def describe(error: BaseException) -> str:
    """One line: the error, and the innermost place in code that is neither installed nor ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def is_users(file: str) -> bool:
    """Is a source file the user's own: not the interpreter's, not installed, not of this package?"""
    ours = __file__.rpartition("/")[0] + "/"
    return not file.startswith(("<", ours, sys.base_prefix + "/lib/python")) and "site-packages" not in file and "dist-packages" not in file
