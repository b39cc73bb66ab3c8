"""Where in the plan a checkpoint stands: at its step, unless a callback has ended epochs before their last row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from raytrain_nlp.paths import read_json


def find_position(state: Any, steps_per_epoch: int) -> int:
    """The global batch that comes next, counted over all epochs of the plan.

    Args:
        state: a `TrainerState` as a checkpoint holds it.
    """
    passed = (state.epoch or 0.0) * steps_per_epoch
    control = (state.stateful_callbacks or {}).get("TrainerControl") or {}
    if control.get("args", {}).get("should_epoch_stop"):
        return math.ceil(round(passed) / steps_per_epoch) * steps_per_epoch
    return round(passed)


def read_position(checkpoint: Path, step: int, steps_per_epoch: int) -> int:
    """`find_position` of a checkpoint's folder, which was written after `step`."""
    from transformers import TrainerState

    values = read_json(checkpoint / "trainer_state.json")
    return find_position(TrainerState(**values), steps_per_epoch) if values else step
