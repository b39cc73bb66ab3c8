"""Placement groups of controllers that are dead. Ray keeps what an actor has placed as long as its job lives.

Ray Train has an actor of its own for that, a process more for each run, which asks Ray's dashboard whether the
controller
lives: without a dashboard it waits for its answer at each end of a run, and frees nothing. The GCS says both in one
    table.
"""

from __future__ import annotations

import time

from raytrain_nlp.compat.ray import actor_entry, placement_groups_of_this_job

_CONTROLLER = "TrainController"
_DEATH_S = 5.0
_POLL_S = 0.05


def free_groups_of(controller: str) -> None:
    """What a controller that is being killed (its actor id in hex) has placed, or has asked to place."""
    deadline = time.monotonic() + _DEATH_S  # it may ask until it is dead
    while not _is_dead(controller) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _remove([group for group, creator in placement_groups_of_this_job() if creator == controller])


def free_orphans() -> None:
    """What dead controllers of this job have left."""
    _remove([group for group, creator in placement_groups_of_this_job() if _is_dead(creator, _CONTROLLER)])


def _is_dead(actor: str, kind: str | None = None) -> bool:
    """Is it an actor (of that class), and dead?"""
    entry = actor_entry(actor)
    return bool(entry) and entry["State"] == "DEAD" and kind in (None, entry["ActorClassName"])


def _remove(groups: list[str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
