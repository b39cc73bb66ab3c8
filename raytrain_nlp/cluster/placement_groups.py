"""Removes placement groups of controllers that are dead. Ray keeps an actor's placement groups until the actor's job
ends.

Ray Train has an actor for that, an additional process for each run. It asks Ray's dashboard whether the controller is
alive; without a dashboard it waits for the answer at every end of a run, and removes nothing. The GCS has both pieces
of information in its tables.
"""

from __future__ import annotations

import time

from raytrain_nlp.compat.ray import actor_entry, placement_groups_of_this_job

_CONTROLLER = "TrainController"
_DEATH_S = 5.0
_POLL_S = 0.05


def free_groups_of(controller: str) -> None:
    """Remove the placement groups that a controller has created, also those not placed yet.

    Args:
        controller: actor id, in hex, of a controller that is being killed.
    """
    deadline = time.monotonic() + _DEATH_S  # it may create groups until it is dead
    while not _is_dead(controller) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _remove([group for group, creator in placement_groups_of_this_job() if creator == controller])


def free_orphans() -> None:
    """Remove the placement groups that dead controllers of this Ray job have left."""
    _remove([group for group, creator in placement_groups_of_this_job() if _is_dead(creator, _CONTROLLER)])


def _is_dead(actor: str, kind: str | None = None) -> bool:
    """Is this the id of an actor that is dead, and of the class `kind` where one is given?"""
    entry = actor_entry(actor)
    return bool(entry) and entry["State"] == "DEAD" and kind in (None, entry["ActorClassName"])


def _remove(groups: list[str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
