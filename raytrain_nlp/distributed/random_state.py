"""The state of all random generators of a process: Python's, NumPy's, torch's, and that of its GPU."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from raytrain_nlp.distributed import device


def random_state() -> dict[str, Any]:
    """The state as it is now; a tree of plain values and tensors."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
        **device.rng_state(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to a state that `random_state` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"])
    device.set_rng_state(state)
