"""What MLflow accepts: names and texts it does not refuse, and what its refusals mean."""

from __future__ import annotations

import posixpath
import re

_NO_NAME = re.compile(r"[^/\w.\- :]")
_PASSING = {
    "TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED",
}  # fmt: skip
"""MLflow's codes of errors that may be gone the next time; also of a server that does not answer."""


def name_of(key: str) -> str:
    """A name MLflow takes: one it refuses (`recall@10`) would hold up all figures behind it for ever."""
    name = _NO_NAME.sub("_", key)[:250]
    return (
        name
        if posixpath.normpath(name) == name and not name.startswith((".", "/"))
        else name.replace("/", "_").replace(".", "_") or "_"
    )


def text_of(value: object) -> str:
    """Text of at most 5,000 characters that a database takes."""
    return str(value)[:5000].encode("utf-8", "replace").decode("utf-8")


def is_refusal(error: Exception) -> bool:
    """Does an error say that MLflow has not what is asked for, as an older server has no logged models? Others pass."""
    if isinstance(error, (ImportError, AttributeError, NotImplementedError, TypeError, ValueError)):
        return True  # an older client
    code = getattr(error, "error_code", None)
    return isinstance(code, str) and code not in _PASSING


def is_locked(error: Exception) -> bool:
    """Does another process write to the SQLite database just now?"""
    return "database is locked" in str(error)
