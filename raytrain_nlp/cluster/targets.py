"""Where the workers of a job could be: this machine, a cluster, a cluster that is only a file yet; which GPUs there
are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from raytrain_nlp.cluster import gpus
from raytrain_nlp.cluster.connection import connected_briefly
from raytrain_nlp.cluster.session import is_local

_GPU_TYPE = "accelerator_type:"
_NO_BF16 = ("V100", "P100", "T4", "P4", "K80", "GTX", "TITAN", "QUADRO", "RTX-2", "M60")
"""In the names Ray gives to NVIDIA's GPUs from before Ampere."""


@dataclass(frozen=True)
class Place:
    """Where workers could be."""

    where: str
    gpus: tuple[float, ...] = ()
    """GPUs of each machine that has some, or may be added with some."""
    kinds: tuple[str, ...] = ()
    """Their names."""
    bf16: bool = False
    """Have all of them bf16, as far as is known?"""
    cpus: int | None = None
    """Of the one machine there is; None: of a cluster, whose room is looked at when it is asked for."""
    remark: str = ""
    """Why there are fewer GPUs than one might see."""


def find_place() -> Place:
    """This machine where the driver starts a Ray of its own, else the cluster: what it has and what its autoscaler may
    add.
    """
    if is_local():
        return this_machine()
    from raytrain_nlp.cluster.resources import nodes_of_cluster

    with connected_briefly():
        return place_of("the cluster", nodes_of_cluster())


def this_machine() -> Place:
    found = gpus.local_gpus()
    remark = "torch is built for CPUs only" if gpus.torch_without_gpu() else ""
    kinds = tuple(dict.fromkeys(gpu.name for gpu in found))
    return Place(
        "this machine",
        (float(len(found)),) if found else (),
        kinds,
        bool(found) and all(gpu.bf16 for gpu in found),
        os.cpu_count() or 1,
        remark,
    )


def place_of(where: str, nodes: list[dict[str, float]]) -> Place:
    """By the resources of nodes, as Ray counts them."""
    having = [node for node in nodes if node.get("GPU", 0) > 0]
    kinds = [next((name.removeprefix(_GPU_TYPE) for name in node if name.startswith(_GPU_TYPE)), "") for node in having]
    known = bool(kinds) and all(kind and not any(old in kind.upper() for old in _NO_BF16) for kind in kinds)
    return Place(where, tuple(node["GPU"] for node in having), tuple(filter(None, dict.fromkeys(kinds))), known)
