"""Which GPUs of a machine a process may see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, MutableMapping

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""Environment of a process that must not see a GPU. CUDA and HIP read it when they are first used, DeepSpeed when it is
imported. Ray does not change it where a worker asks for no GPU."""
UNTOUCHED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Environment of a process that may see GPUs but must not initialize CUDA. With it, torch, which DeepSpeed asks for
GPUs when it is imported, asks NVML."""
_NOT_INITIALIZED = 3
"""`CUDA_ERROR_NOT_INITIALIZED` of CUDA's driver API."""
CONTEXT_BYTES = 10**9
"""Approximate memory of a GPU that a process uses before it has any tensor: a CUDA context, and buffers of NCCL and
cuBLAS."""


def apply_hidden(environment: MutableMapping[str, str], use_gpu: bool) -> None:
    """Change an environment so that a process with it sees no GPU; where `use_gpu` is true, undo an earlier such
    change.
    """
    if not use_gpu:
        environment.update(WITHOUT_GPU)
    elif environment.get("DS_ACCELERATOR") == WITHOUT_GPU["DS_ACCELERATOR"]:
        del environment["DS_ACCELERATOR"]


@contextlib.contextmanager
def hidden_gpus(use_gpu: bool) -> Iterator[None]:
    """While inside, neither this process nor those that it starts see a GPU, unless `use_gpu` is true. For the main
    thread only.
    """
    before = {name: os.environ.get(name) for name in WITHOUT_GPU}
    apply_hidden(os.environ, use_gpu)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def touches_cuda() -> bool:
    """Has this process initialized CUDA? It can then neither be forked nor be given other GPUs by CUDA_VISIBLE_DEVICES.
    Also true with ROCm, where this cannot be found out.
    """
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch.version, "hip", None):
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)
