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
_GIGABYTES = {
    "A100-80G": 80, "A100-40G": 40, "A100": 40, "A10": 24, "H100": 80, "H200": 141, "H20": 96, "GH200": 96, "B200": 180,
    "B300": 270, "L40": 48, "L4": 24, "T4": 16, "V100": 16, "P100": 16, "P4": 8, "K80": 12, "A40": 48, "A6000": 48,
    "MI100": 32, "MI200": 64, "MI210": 64, "MI250": 64, "MI300A": 128, "MI300X": 192, "MI308X": 192, "MI325X": 256,
}  # fmt: skip
"""Memory of GPUs by the names Ray gives to them; of several kinds of one name that of the smallest. From the data
sheets of NVIDIA and AMD.
"""
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
    memory: int | None = None
    """Bytes of the smallest of the GPUs, where that is known of all."""
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
        gpus.smallest_memory(found),
        remark,
    )


def place_of(where: str, nodes: list[dict[str, float]]) -> Place:
    """By the resources of nodes, as Ray counts them."""
    having = [node for node in nodes if node.get("GPU", 0) > 0]
    kinds = [next((name.removeprefix(_GPU_TYPE) for name in node if name.startswith(_GPU_TYPE)), "") for node in having]
    known = bool(kinds) and all(kind and not any(old in kind.upper() for old in _NO_BF16) for kind in kinds)
    memory = min(map(_memory_of, kinds), default=0)
    there = tuple(node["GPU"] for node in having)
    return Place(where, there, tuple(filter(None, dict.fromkeys(kinds))), known, memory=memory or None)


def _memory_of(kind: str) -> int:
    """Bytes of a GPU that Ray calls so; 0 where that is not known. Ray may add a letter (A10G, L40S)."""
    names = [name for name in _GIGABYTES if kind.upper() == name or kind.upper()[:-1] == name]
    return max((_GIGABYTES[name] for name in names), default=0) * 10**9
