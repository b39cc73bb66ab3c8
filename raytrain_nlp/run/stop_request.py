"""The driver's word to the ranks that they are to commit a checkpoint after the step they are in, and end: a file of
the run's folder.
"""

from __future__ import annotations

import contextlib

from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths, read_json, write_json


def ask_to_move(paths: RunPaths, reason: str, then_end: bool = False) -> None:
    """Have all ranks commit a checkpoint and end. The driver then starts others that go on from it, or ends with it."""
    write_json(paths.move, {"reason": reason, "then": "end" if then_end else "move"})
    paths.store.push(paths.move)


def ends_after_checkpoint(paths: RunPaths) -> bool:
    """Has the driver been asked to end with the checkpoint that is being committed?"""
    with contextlib.suppress(InputError):
        return (read_json(paths.move) or {}).get("then") == "end"
    return False


def forget(paths: RunPaths) -> None:
    """What an earlier driver has asked for."""
    paths.store.delete([paths.move])
