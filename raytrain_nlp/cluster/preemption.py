"""Nodes that are about to be removed: by a cloud that takes a spot node back, or by an autoscaler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raytrain_nlp.compat import ray as compat
from raytrain_nlp.compat.ray import asking_ray


def draining_nodes(say: Callable[[str], None] | None = None) -> dict[str, int]:
    """Id of each node that is being drained -> deadline in milliseconds since the epoch (0: none).

    Args:
        say: called with a line of text where this version of Ray does not tell; default: standard error.
    """
    import ray

    drained: dict[str, Any] = {}
    with asking_ray("nodes that are to go are not noticed, so no checkpoint is committed before they do", say):
        if ray.is_initialized():
            drained = {**compat.draining_nodes()}
    return drained
