"""Placement groups of controllers that are dead are given back; of all others they stay."""

from __future__ import annotations

from typing import Any

import pytest
from support import wait_until

from raytrain_nlp.cluster.placement_groups import free_groups_of, free_orphans

pytestmark = pytest.mark.quick


def test_only_what_dead_controllers_placed_is_freed(shared_ray: Any) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    class Placing:
        """An actor that places a group, or asks for one that fits nowhere."""

        def place(self, cpus: float) -> str:
            from ray.util.placement_group import placement_group

            self.group = placement_group([{"CPU": cpus}])
            return self.group.id.hex()

    class TrainController(Placing):
        __qualname__ = "TrainController"  # Ray names actors by it

    def states() -> list[str]:
        table = ray.util.placement_group_table()
        return [table[group]["state"] for group in groups]

    def start(kind: type) -> Any:
        return ray.remote(num_cpus=0)(kind).remote()

    dead, living, waiting, others = actors = [
        start(kind) for kind in (TrainController, TrainController, TrainController, Placing)
    ]
    groups = ray.get([actor.place.remote(1000 if actor is waiting else 0.01) for actor in actors])
    wait_until(lambda: states() == ["CREATED", "CREATED", "PENDING", "CREATED"], 30, "three are placed, one cannot be")
    for actor in (dead, others):
        ray.kill(actor)
    wait_until(lambda: free_orphans() or states()[0] == "REMOVED", 30, "the dead controller's group is freed")
    assert states() == ["REMOVED", "CREATED", "PENDING", "CREATED"]
    ray.kill(waiting)
    free_groups_of(waiting._actor_id.hex())
    assert states() == ["REMOVED", "CREATED", "REMOVED", "CREATED"]
    ray.kill(living)
    free_groups_of(living._actor_id.hex())
    assert states() == ["REMOVED", "REMOVED", "REMOVED", "CREATED"]
    remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(groups[3])))
