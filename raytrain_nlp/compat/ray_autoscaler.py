"""Ray's autoscaler: the code by which it packs bundles and reads its file, used before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from raytrain_nlp.compat.quiet import quiet


def unplaced(bundles: list[dict[str, float]], nodes: list[dict[str, float]]) -> list[dict[str, float]]:
    """The bundles that do not fit on nodes with these resources."""
    from ray.autoscaler._private.resource_demand_scheduler import get_bin_pack_residual

    return get_bin_pack_residual(nodes, bundles)[0]


def nodes_to_start(
    node_types: dict[str, dict[str, Any]], existing: Mapping[str, int], most: int, bundles: list[dict[str, float]]
) -> tuple[dict[str, int], list[dict[str, float]]]:
    """Number of nodes of each type that the autoscaler starts for the bundles, and the bundles that no type can hold.

    Args:
        node_types: name -> `resources` and `max_workers`, as in a cluster file.
        existing: type -> number of nodes in the cluster.
        most: number of nodes, over all types, that it may start.
    """
    from ray.autoscaler._private import resource_demand_scheduler as packing
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary

    scorer = partial(packing._default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    with quiet("ray.autoscaler._private.resource_demand_scheduler"):
        added, left = packing.get_nodes_for(node_types, dict(existing), "", most, bundles, scorer)
    return dict(added), left


def check_cluster_file(config: dict[str, Any]) -> None:
    """Raise jsonschema's `ValidationError` where a cluster file breaks Ray's schema, and other exceptions of Ray for
    other errors. `ray up` checks a file only when it starts the cluster.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    with quiet("ray.autoscaler._private.util"):
        validate_config(prepare_config(config))
