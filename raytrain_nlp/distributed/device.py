"""The device this process computes on: the one the job names, whatever the machine has. All queries of a GPU are made
here.

torch, DeepSpeed and accelerate each look for a GPU by themselves, and would take one that the job does not use. So the
device is set before the first of them looks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil

from raytrain_nlp.compat.deepspeed import forget_accelerator
from raytrain_nlp.compat.nvml import load_nvml
from raytrain_nlp.distributed.peak_flops import peak_flops
from raytrain_nlp.host.devices import CONTEXT_BYTES, apply_hidden

if TYPE_CHECKING:
    import torch

_use_gpu = False
_SELF = "/proc/self"


def settle_device(use_gpu: bool) -> None:
    """Set the device of this process. Must be called before torch, DeepSpeed or accelerate looks for one."""
    global _use_gpu
    _use_gpu = use_gpu
    apply_hidden(os.environ, use_gpu)
    forget_accelerator(use_gpu)  # DeepSpeed may be loaded for another job, or by another's environment


def uses_gpu() -> bool:
    """Does this process's job compute on a GPU?"""
    return _use_gpu


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A CPU tensor on the device; the host does not wait for a copy to a GPU, which it makes from pinned memory."""
    import torch

    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(value: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A GPU's tensor on its way to pinned memory, and the CUDA event after which it is there."""
    import torch

    there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    there.copy_(value, non_blocking=True)
    return there, recorded_event()


def recorded_event() -> Any:
    """A CUDA event behind all that this process has asked its GPU for."""
    import torch

    event = torch.cuda.Event()
    event.record()
    return event


def reset_peak() -> None:
    """Restart the measurement of `peak_memory`; of resident memory only where Linux permits it (`clear_refs`)."""
    if _use_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open(f"{_SELF}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory() -> int:
    """Peak bytes since `reset_peak` of the memory that `memory.planner` plans. On a GPU: what torch reserved, and the
    process's CUDA context. On CPU: resident memory, including pages shared with the process it was forked from, as the
    kernel counts it when memory runs out.
    """
    if _use_gpu:
        import torch

        return torch.cuda.max_memory_reserved() + _context_bytes()
    try:
        with open(f"{_SELF}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _context_bytes() -> int:
    """Bytes of GPU memory this process uses besides torch's allocator, by NVML. In a container NVML may list other
    process ids; then it counts only where this is the GPU's one process, else a fixed estimate is returned.
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
    """Bytes this process holds now: resident memory, and on a GPU those of its tensors there."""
    resident = psutil.Process().memory_info().rss
    if _use_gpu:
        import torch

        return resident + torch.cuda.memory_allocated()
    return resident


def free_memory() -> float:
    """Bytes this rank may still allocate: on a GPU what is free there or in torch's cache, on CPU an equal share of the
    machine's available memory for each rank on it.
    """
    if _use_gpu:
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def release_cache() -> None:
    """Return unused memory in torch's cache to the GPU."""
    if _use_gpu:
        import torch

        torch.cuda.empty_cache()


def device_figures() -> dict[str, float]:
    """GPU figures for the log, named as MLflow's system metrics; in MB (10^6 bytes). Empty on CPU."""
    if not _use_gpu:
        return {}
    import torch

    return {"system/gpu_memory_peak_megabytes": torch.cuda.max_memory_allocated() / 1e6}


def peak_flops_here(precision: str) -> float | None:
    """FLOP/s of this process's GPU at its best in dense matrix products; None on CPU and for a GPU whose peak is not
    known. `precision`: "bf16", "fp16" or "fp32", which is TF32 where torch may use it.
    """
    if not _use_gpu:
        return None
    import torch

    # the older `allow_tf32` raises where this was set, and sets it where it is set itself
    if precision == "fp32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    return peak_flops(torch.cuda.get_device_name(), precision)


def moment() -> Any:
    """This moment, for `seconds_between`: on a GPU an event recorded in the current stream, which costs no wait."""
    if not _use_gpu:
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begun: Any, ended: Any) -> float | None:
    """Seconds between two moments, `ended` being the later; None while the GPU has not reached it. Does not wait."""
    if isinstance(ended, float):
        return ended - float(begun)
    return float(begun.elapsed_time(ended)) / 1e3 if ended.query() else None


def rng_state() -> dict[str, object]:
    """The GPU's RNG state, under its key in a checkpoint; empty on CPU, whose state torch's own RNG state covers."""
    if not _use_gpu:
        return {}
    import torch

    return {"cuda": torch.cuda.random.get_rng_state()}


def set_rng_state(state: dict[str, object]) -> None:
    """Restore the GPU's RNG state from the states of a checkpoint, where both exist."""
    if _use_gpu and "cuda" in state:
        import torch

        torch.cuda.random.set_rng_state(state["cuda"])
