"""Where in the plan training goes on after a checkpoint: at its step, unless a callback has ended epochs early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from raytrain_nlp.paths import read_json


def find_position(state: Any, steps_per_epoch: int) -> int:
    """The index of the next global batch, counted from 0 over all epochs of the plan.

    Args:
        state: the `TrainerState` of a checkpoint.
        steps_per_epoch: global batches in an epoch.
    """
    passed = (state.epoch or 0.0) * steps_per_epoch
    control = (state.stateful_callbacks or {}).get("TrainerControl") or {}
    if control.get("args", {}).get("should_epoch_stop"):
        return math.ceil(round(passed) / steps_per_epoch) * steps_per_epoch
    return round(passed)


def read_position(checkpoint: Path, step: int, steps_per_epoch: int) -> int:
    """`find_position` of the checkpoint in a folder; `step`, its optimizer step, where it has no trainer state."""
    from transformers import TrainerState

    values = read_json(checkpoint / "trainer_state.json")
    return find_position(TrainerState(**values), steps_per_epoch) if values else step
