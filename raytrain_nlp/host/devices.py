"""Which GPUs of a machine a process may see."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, MutableMapping

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""The environment of a process that is to see none. CUDA and HIP read it when they are first asked, DeepSpeed when it
is loaded; Ray leaves it alone where a worker asks for no GPU."""
UNTOUCHED = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""The environment of a process that sees GPUs and is not to initialize CUDA: torch, which DeepSpeed asks for a GPU when
it is imported, then asks NVML."""
_NOT_INITIALIZED = 3
"""`CUDA_ERROR_NOT_INITIALIZED` of the CUDA driver's API."""
CONTEXT_BYTES = 10**9
"""What a process takes of a GPU's memory before there is a tensor: a CUDA context with NCCL's and cuBLAS's own buffers,
about.
"""


def apply_hidden(environment: MutableMapping[str, str], use_gpu: bool) -> None:
    """Have a process, or one that will be started with this environment, see no GPU; of one that uses them, undo it."""
    if not use_gpu:
        environment.update(WITHOUT_GPU)
    elif environment.get("DS_ACCELERATOR") == WITHOUT_GPU["DS_ACCELERATOR"]:
        del environment["DS_ACCELERATOR"]


@contextlib.contextmanager
def hidden_gpus(use_gpu: bool) -> Iterator[None]:
    """While inside, neither this process nor one it starts sees a GPU, unless the job uses them. For the main thread
    only.
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
    """Has this process initialized CUDA? It then can neither be forked nor be given other GPUs by
    CUDA_VISIBLE_DEVICES. True also where that cannot be found out: with ROCm.
    """
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch.version, "hip", None):
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)
