"""Nodes that have been told to go: by a cloud that takes a spot node back, or by an autoscaler."""

from __future__ import annotations

import contextlib
from typing import Any


def draining_nodes() -> dict[str, int]:
    """Ids of nodes that are being drained, with the deadline in milliseconds since the epoch (0 = none)."""
    import ray
    from ray._private.state import state

    drained: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # Ray raises what it likes while its head is away
        if ray.is_initialized():
            drained = state.get_draining_nodes()
    return drained
