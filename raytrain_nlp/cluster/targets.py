"""Where the workers of a job could run, and on which GPUs: on this machine, on a cluster, or on the cluster that a file
describes.
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
"""GPU by Ray's name -> memory in GB, from the data sheets of NVIDIA and AMD. Where GPUs of several sizes have the same
name, the smallest counts."""
_NO_BF16 = ("V100", "P100", "T4", "P4", "K80", "GTX", "TITAN", "QUADRO", "RTX-2", "M60")
"""Parts of Ray's names for NVIDIA's GPUs older than Ampere."""


@dataclass(frozen=True)
class Place:
    """A place where workers could run."""

    where: str
    """What messages call it."""
    gpus: tuple[float, ...] = ()
    """Number of GPUs of each machine that has any, or that may be added with any."""
    kinds: tuple[str, ...] = ()
    """Names of these GPUs."""
    bf16: bool = False
    """Do all of these GPUs have bf16, as far as is known?"""
    cpus: int | None = None
    """CPUs of the machine; None for a cluster, whose room is checked later."""
    memory: int | None = None
    """Bytes of the smallest GPU; None where it is not known for all."""
    remark: str = ""
    """Why GPUs of the machine cannot be used, or ""."""


def find_place() -> Place:
    """This machine where the driver starts a Ray of its own; otherwise the cluster, with its nodes and those that its
    autoscaler may add.
    """
    if is_local():
        return this_machine()
    from raytrain_nlp.cluster.resources import nodes_of_cluster

    with connected_briefly():
        return place_of("the cluster", nodes_of_cluster())


def this_machine() -> Place:
    """This machine, with the GPUs that the installed torch can use."""
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
    """A place with nodes that have these resources, as Ray counts them."""
    having = [node for node in nodes if node.get("GPU", 0) > 0]
    kinds = [next((name.removeprefix(_GPU_TYPE) for name in node if name.startswith(_GPU_TYPE)), "") for node in having]
    known = bool(kinds) and all(kind and not any(old in kind.upper() for old in _NO_BF16) for kind in kinds)
    memory = min(map(_memory_of, kinds), default=0)
    there = tuple(node["GPU"] for node in having)
    return Place(where, there, tuple(filter(None, dict.fromkeys(kinds))), known, memory=memory or None)


def _memory_of(kind: str) -> int:
    """Bytes of a GPU, given Ray's name for it; 0 where not known. The name may have a further letter (A10G, L40S)."""
    names = [name for name in _GIGABYTES if kind.upper() == name or kind.upper()[:-1] == name]
    return max((_GIGABYTES[name] for name in names), default=0) * 10**9
