"""The GPUs of this machine, found without a library that would initialize them; and whether they are enough for a job
and can compute in its precision.
"""

from __future__ import annotations

import contextlib
import os
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.compat.nvml import load_nvml
from raytrain_nlp.config import TrainJob
from raytrain_nlp.errors import Problem
from raytrain_nlp.host.packages import package_folder

_NEED_AMPERE = ("bf16", "bf16_full_eval", "tf32")
_BF16 = (8, 0)
"""Compute capability from which NVIDIA's GPUs have bf16 and TF32 (Ampere)."""
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")
"""Files of AMD's driver: a folder for each CPU and GPU."""

_DRIVERS = (Path("/proc/driver/nvidia/version"), _KFD)


_MOSTLY = 0.9
"""Share of a GPU's memory. Where less is free, other processes use the GPU."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine."""

    name: str
    memory: int | None
    """Bytes; None where that is not known."""
    bf16: bool
    """Does it compute in bf16 and TF32?"""
    free: int | None = None
    """Bytes that no process uses; None where that is not known."""

    @property
    def usable(self) -> int | None:
        """Bytes that a worker can use: all memory, or the free part where other processes use much of it. None where
        not known.
        """
        if self.memory is None or self.free is None or self.free >= _MOSTLY * self.memory:
            return self.memory
        return self.free


def local_gpus() -> list[Gpu]:
    """The GPUs of this machine that the installed torch can use and the environment does not hide. CUDA is not
    initialized.
    """
    build = _torch_build()
    if build.get("cuda"):
        return _visible(_nvidia(), "CUDA_VISIBLE_DEVICES")
    return _visible(_amd(), "HIP_VISIBLE_DEVICES") if build.get("hip") else []


def smallest_memory(found: list[Gpu]) -> int | None:
    """Bytes that a worker can use on any of the GPUs; None where there is none, or it is not known for one of them."""
    usable = [gpu.usable for gpu in found]
    return min(filter(None, usable)) if usable and all(usable) else None


def torch_without_gpu() -> bool:
    """Does this machine have a GPU, while the installed torch is built for CPUs only?"""
    build = _torch_build()
    return not build.get("cuda") and not build.get("hip") and any(path.exists() for path in _DRIVERS)


def check_gpus(job: TrainJob) -> list[Problem]:
    """What the GPUs of this machine lack for the job: their number, bf16 or TF32."""
    found, workers = local_gpus(), job.workers
    each = workers.resources_per_worker.get("GPU", 1)
    wanted = each * workers.num_workers
    if wanted > len(found):
        why = " that torch can use: it is built for CPUs only" if torch_without_gpu() else ""
        who = "1 worker needs" if workers.num_workers == 1 else f"{workers.num_workers} workers need"
        what = f"{who} {wanted:g} GPU{'s' if wanted != 1 else ''}, this machine has {len(found) or 'none'}{why}"
        todo = (
            "Lower num_workers, or run on a cluster."
            if found
            else "Remove use_gpu, and they run on CPUs, or run on a cluster."
        )
        return [Problem("workers.use_gpu" if not found else "workers.num_workers", what, todo)]
    old = next((gpu.name for gpu in found if not gpu.bf16), None)
    values = job.arguments()
    return [
        Problem(
            f"training.{key}",
            f"is not for this machine's GPU ({old}); it came with the Ampere generation",
            f"Remove it{'' if key == 'tf32' else ', or use fp16'}.",
        )
        for key in _NEED_AMPERE
        if values.get(key) and old
    ]


def _torch_build() -> dict[str, Any]:
    """What torch was built for, read from its file version.py without importing torch."""
    with contextlib.suppress(OSError, ImportError):
        return runpy.run_path(str(package_folder("torch") / "version.py"))
    return {}


def _visible(gpus: list[Gpu], variable: str) -> list[Gpu]:
    """The GPUs that an environment variable lists by index or id; all where it is not set. As in CUDA, the list ends at
    the first invalid entry.
    """
    if (value := os.environ.get(variable)) is None:
        return gpus
    found: list[Gpu] = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        number = int(part) if part.isdigit() else len(found) if part.startswith(("GPU-", "MIG-")) else len(gpus)
        if number >= len(gpus):
            break
        found.append(gpus[number])
    return found


def _nvidia() -> list[Gpu]:
    nvml = load_nvml()
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError):  # no driver
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [
            Gpu(
                _text(nvml.nvmlDeviceGetName(handle)),
                (memory := nvml.nvmlDeviceGetMemoryInfo(handle)).total,
                tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)) >= _BF16,
                memory.free,
            )
            for handle in handles
        ]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _amd() -> list[Gpu]:
    found = []
    for node in sorted(_KFD.glob("*/properties"), key=lambda path: int(path.parent.name)):
        with contextlib.suppress(OSError, ValueError):
            values = dict(line.split() for line in node.read_text().splitlines())
            found += [Gpu("AMD GPU", None, True)] if int(values.get("simd_count", 0)) else []
    return found
