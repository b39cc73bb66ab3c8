"""Resources: what a job needs, what the nodes of the cluster have, what its autoscaler can add, and whether the job
fits.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytrain_nlp.cluster.preemption import draining_nodes
from raytrain_nlp.compat.ray import asking_ray, available_per_node, reported_cluster_config
from raytrain_nlp.compat.ray_autoscaler import nodes_to_start, unplaced
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.yaml_text import parse_yaml

Resources = Mapping[str, float]
_HEAD = "node:__internal_head__"
_GROUP = "ray.io/node-group"
_SLACK = 1e-6
"""Added to amounts, so that ten tenths of a CPU are one CPU."""
_KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""Set in the environment of KubeRay's pods, whose autoscaler runs in a container of its own."""
MOST_LISTED = 1_000
"""Number of nodes of one type that are listed one by one. More would not change any plan."""


@dataclass(frozen=True)
class NodeType:
    """A type of node that an autoscaler can start."""

    name: str
    resources: dict[str, float]
    most: int
    """Number of nodes of this type that there may be."""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """The nodes that an autoscaler can start."""

    types: list[NodeType]
    most: int
    """Number of worker nodes, over all types, that there may be."""


def worker_of(job: TrainJob) -> dict[str, float]:
    """Resources of one worker, all of them on one node."""
    return {"CPU": 1.0, **({"GPU": 1.0} if job.workers.use_gpu else {}), **job.workers.resources_per_worker}


def need_of(job: TrainJob) -> dict[str, float]:
    """Resources that a run of the job needs in total: its workers, a feed for each, and the preparation of streamed
    rows.
    """
    need: dict[str, float] = {}
    for bundle in bundles_of(job):
        need = {name: need.get(name, 0) + bundle.get(name, 0) for name in {**need, **bundle}}
    return need


def bundles_of(job: TrainJob) -> list[dict[str, float]]:
    """The same resources as bundles, each of which must be on one node."""
    feeds = job.workers.num_workers + bool(job.data.streaming)
    worker = {name: amount for name, amount in worker_of(job).items() if amount}
    return [dict(worker) for _ in range(job.workers.num_workers)] + [
        {"CPU": job.data.feed_cpus_per_worker} for _ in range(feeds)
    ]


def living_nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive and not being drained."""
    import ray

    leaving = draining_nodes()
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def free_nodes() -> list[dict[str, float]]:
    """Unused resources of each node that is alive and not being drained."""
    leaving = draining_nodes()
    return [dict(resources) for node, resources in available_per_node().items() if node not in leaving]


def nodes_of_cluster() -> list[dict[str, float]]:
    """Resources of each node of the cluster, and of each that its autoscaler may add."""
    scaling, nodes = find_scaling(), living_nodes()
    if scaling is None:
        return nodes
    room = max(scaling.most - len(nodes) + 1, 0)
    added = [kind.resources for kind in scaling.types for _ in range(min(kind.most - alive_of(kind.name), MOST_LISTED))]
    return nodes + [dict(resources) for resources in added[:room]]


def left_over(bundles: list[dict[str, float]], nodes: list[dict[str, float]]) -> list[dict[str, float]]:
    """The bundles that do not fit on the nodes, as Ray's autoscaler packs them."""
    return unplaced(bundles, [_with_slack(node) for node in nodes])


def nodes_for(
    bundles: list[dict[str, float]], scaling: Scaling, existing: Mapping[str, int], workers: int
) -> tuple[dict[str, int], list[dict[str, float]]]:
    """Number of nodes of each type that Ray's autoscaler starts for the bundles, and the bundles that no type can hold.

    Args:
        existing: type of node -> number of nodes in the cluster.
        workers: number of nodes in the cluster, without the head.
    """
    kinds = {kind.name: {"resources": _with_slack(kind.resources), "max_workers": kind.most} for kind in scaling.types}
    return nodes_to_start(kinds, existing, max(scaling.most - workers, 0), bundles)


def alive_of(name: str) -> int:
    """Number of nodes of a type that are alive."""
    import ray

    return sum(node["Alive"] and (node.get("Labels") or {}).get(_GROUP) == name for node in ray.nodes())


def find_scaling() -> Scaling | None:
    """The nodes that the cluster's autoscaler can start; no types where there is no autoscaler. None: there is one, but
    it does not tell.

    Ray has no single source for this. Some autoscalers report it to the cluster; the one that `ray up` starts has a
    file on the head node; KubeRay's has neither, and only says afterwards what it cannot start.
    """
    return _reported() or _of_head()


def read_scaling(config: Mapping[str, Any]) -> Scaling:
    """What the values of a cluster file allow. The head is running already, so it is not among the types."""
    most = int(config.get("max_workers", sys.maxsize))
    kinds = {
        name: kind
        for name, kind in (config.get("available_node_types") or {}).items()
        if name != config.get("head_node_type")
    }
    types = [
        NodeType(
            name, dict(kind.get("resources") or {}), int(kind.get("max_workers", most)), dict(kind.get("labels") or {})
        )
        for name, kind in kinds.items()
    ]
    return Scaling(types, most)


def _reported() -> Scaling | None:
    config = None
    with asking_ray("what the cluster's autoscaler reports is not seen; the head node is asked"):
        config = reported_cluster_config()
    if not config or not config.node_group_configs:
        return None
    groups = [
        NodeType(group.name, dict(group.resources), sys.maxsize if group.max_count < 0 else group.max_count)
        for group in config.node_group_configs
    ]
    return Scaling(groups, sys.maxsize)


def _of_head() -> Scaling | None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    address = ray.get_runtime_context().gcs_address
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None or head == ray.get_runtime_context().get_node_id():
        return read_monitor(address)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    return ray.get(ray.remote(read_monitor).options(num_cpus=0, scheduling_strategy=there).remote(address))


def read_monitor(address: str) -> Scaling | None:
    """Read the file with which this cluster's monitor was started; runs on the head node. A monitor without a file, or
    no monitor, starts no nodes.

    Args:
        address: of the GCS.
    """
    import psutil
    import yaml

    port = ":" + address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        address_given = next((part for part in line if part.startswith("--gcs-address=")), "")
        if address_given.endswith(port) and any(part.endswith("monitor.py") and "autoscaler" in part for part in line):
            path = next((part.partition("=")[2] for part in line if part.startswith("--autoscaling-config=")), None)
            if path is None:
                return Scaling([], 0)
            with contextlib.suppress(OSError, yaml.YAMLError, AttributeError, ValueError):
                return read_scaling(parse_yaml(Path(path).expanduser().read_text(encoding="utf-8")))
            return None
    return None if _KUBERAY in os.environ else Scaling([], 0)


def _with_slack(resources: Resources) -> dict[str, float]:
    return {name: amount + _SLACK if amount else 0 for name, amount in resources.items()}
