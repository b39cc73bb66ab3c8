"""The device this process computes on: what the job says, never what the machine has. All questions to a GPU are asked
here.

torch, DeepSpeed and accelerate each look for a GPU by themselves and take one that the job does not use. So it is
settled before the first of them asks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

import psutil

from raytrain_nlp.compat.deepspeed import forget_accelerator
from raytrain_nlp.compat.nvml import load_nvml
from raytrain_nlp.host.devices import CONTEXT_BYTES, apply_hidden

_use_gpu = False
_SELF = "/proc/self"


def settle_device(use_gpu: bool) -> None:
    """Say which device this process uses; before torch, DeepSpeed or accelerate is asked for one."""
    global _use_gpu
    _use_gpu = use_gpu
    apply_hidden(os.environ, use_gpu)
    forget_accelerator(use_gpu)  # DeepSpeed may be loaded for another job, or by another's environment


def uses_gpu() -> bool:
    """Does this process's job compute on a GPU?"""
    return _use_gpu


def reset_peak() -> None:
    """The peak of memory counts from here, where the system lets it."""
    if _use_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open(f"{_SELF}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory() -> int:
    """Most bytes this process has had since `reset_peak`, of the memory that is planned (`driver.memory`): of its GPU
    what torch reserved and the process itself takes; else resident memory, with the pages it shares with the process it
    was forked from, as the kernel counts them where memory runs out."""
    if _use_gpu:
        import torch

        return torch.cuda.max_memory_reserved() + _context_bytes()
    try:
        with open(f"{_SELF}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _context_bytes() -> int:
    """What this process has of its GPU besides torch's tensors, where the driver tells; in a container it knows
    processes by other numbers.
    """
    import torch

    nvml, reserved = load_nvml(), torch.cuda.memory_reserved()
    with contextlib.suppress(nvml.NVMLError, OSError, AttributeError):
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        )
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if own := next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None):
            return max(own - reserved, 0)
        if len(processes) == 1:  # this one
            free, total = torch.cuda.mem_get_info()
            return max(total - free - reserved, 0)
    return CONTEXT_BYTES


def held_memory() -> int:
    """Bytes that are this process's now: its own, and those of its GPU that are tensors."""
    resident = psutil.Process().memory_info().rss
    if _use_gpu:
        import torch

        return resident + torch.cuda.memory_allocated()
    return resident


def free_memory() -> float:
    """Bytes this rank may still take: of its GPU, with those torch keeps for what comes; else its share of the
    machine's.
    """
    if _use_gpu:
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def release_cache() -> None:
    """Give back what torch keeps of the GPU's memory."""
    if _use_gpu:
        import torch

        torch.cuda.empty_cache()


def device_figures() -> dict[str, float]:
    """What the log says of the GPU, by MLflow's names."""
    if not _use_gpu:
        return {}
    import torch

    return {"system/gpu_memory_peak_megabytes": torch.cuda.max_memory_allocated() / 1e6}


def rng_state() -> dict[str, object]:
    """The random numbers' state of the GPU, by the name it has in a checkpoint; of a CPU nothing more than torch's
    own.
    """
    if not _use_gpu:
        return {}
    import torch

    return {"cuda": torch.cuda.random.get_rng_state()}


def set_rng_state(state: dict[str, object]) -> None:
    """Of a checkpoint's state what is this device's."""
    if _use_gpu and "cuda" in state:
        import torch

        torch.cuda.random.set_rng_state(state["cuda"])
