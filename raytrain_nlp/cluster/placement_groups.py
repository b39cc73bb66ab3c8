"""Placement groups of controllers that are dead. Ray keeps what an actor has placed as long as its job lives.

Ray Train has an actor of its own for that, a process more for each run, which asks Ray's dashboard whether the controller
lives: without a dashboard it waits for its answer at each end of a run, and frees nothing. The GCS says both in one table.
"""

from __future__ import annotations

import time

_CONTROLLER = "TrainController"
_DEATH_S = 5.0
_POLL_S = 0.05


def free_groups_of(controller: str) -> None:
    """What a controller that is being killed (its actor id in hex) has placed, or has asked to place."""
    deadline = time.monotonic() + _DEATH_S  # it may ask until it is dead
    while not _is_dead(controller) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _remove([group for group, creator in _groups() if creator == controller])


def free_orphans() -> None:
    """What dead controllers of this job have left."""
    _remove([group for group, creator in _groups() if _is_dead(creator, _CONTROLLER)])


def _groups() -> list[tuple[str, str]]:
    """Placement groups of this job with the actors that made them, in hex."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    job = ray.get_runtime_context().get_job_id()
    table = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    return [
        (entry.placement_group_id.hex(), entry.creator_actor_id.hex())
        for entry in table
        if entry.state != PlacementGroupTableData.REMOVED and not entry.is_detached and entry.creator_job_id.hex() == job
    ]


def _is_dead(actor: str, kind: str | None = None) -> bool:
    """Is it an actor (of that class), and dead?"""
    from ray._private.state import state

    entry = state.actor_table(actor)
    return bool(entry) and entry["State"] == "DEAD" and kind in (None, entry["ActorClassName"])


def _remove(groups: list[str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
