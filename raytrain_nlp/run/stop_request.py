"""The driver's request to all ranks to commit a checkpoint after the current step, and end. It is a file in the run's
folder (`move.json`).
"""

from __future__ import annotations

import contextlib

from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths, read_json, write_json


def ask_to_move(paths: RunPaths, reason: str, then_end: bool = False) -> None:
    """Ask all ranks to commit a checkpoint and end.

    Args:
        reason: why, for the workers' event.
        then_end: whether the run then ends. Else the driver starts a new group of workers, which goes on from there.
    """
    write_json(paths.move, {"reason": reason, "then": "end" if then_end else "move"})
    paths.store.push(paths.move)


def ends_after_checkpoint(paths: RunPaths) -> bool:
    """Does the run end with the requested checkpoint, rather than go on with new workers?"""
    with contextlib.suppress(InputError):
        return (read_json(paths.move) or {}).get("then") == "end"
    return False


def forget(paths: RunPaths) -> None:
    """Remove the request, which an earlier driver made."""
    paths.store.delete([paths.move])
