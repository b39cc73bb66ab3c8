"""The GPUs of a machine, without a library that would touch them: which there are, and how a process is kept from them."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from raytrain_nlp.host.packages import package_folder

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""The environment of a process that is to see none. CUDA and HIP read it when they are first asked, DeepSpeed when it is loaded; Ray
leaves it alone where a worker asks for no GPU."""
CONTEXT_BYTES = 10**9
"""What a process takes of a GPU's memory before there is a tensor: a CUDA context with NCCL's and cuBLAS's own buffers, about."""
_BF16 = (8, 0)
"""The compute capability from which NVIDIA's GPUs have bf16 and TF32 (Ampere)."""
_NVML = "raytrain_nlp_nvml"
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")
"""AMD's driver: a folder for each CPU and GPU."""

_DRIVERS = (Path("/proc/driver/nvidia/version"), _KFD)


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory: int | None
    """Bytes, where that is known."""
    bf16: bool
    """Does it compute in bf16 and TF32?"""


def local_gpus() -> list[Gpu]:
    """Those of this machine that the installed torch can use and the environment lets a process see. CUDA is not initialized."""
    build = _torch_build()
    if build.get("cuda"):
        return _visible(_nvidia(), "CUDA_VISIBLE_DEVICES")
    return _visible(_amd(), "HIP_VISIBLE_DEVICES") if build.get("hip") else []


def torch_without_gpu() -> bool:
    """Has this machine a GPU, and the installed torch is one for CPUs only?"""
    build = _torch_build()
    return not build.get("cuda") and not build.get("hip") and any(path.exists() for path in _DRIVERS)


def apply_hidden(environment: MutableMapping[str, str], use_gpu: bool) -> None:
    """Have a process, or one that will be started with this environment, see no GPU; of one that uses them, undo it."""
    if not use_gpu:
        environment.update(WITHOUT_GPU)
    elif environment.get("DS_ACCELERATOR") == WITHOUT_GPU["DS_ACCELERATOR"]:
        del environment["DS_ACCELERATOR"]


@contextlib.contextmanager
def hidden_gpus(use_gpu: bool) -> Iterator[None]:
    """While inside, neither this process nor one it starts sees a GPU, unless the job uses them. For the main thread only."""
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


def _torch_build() -> dict[str, Any]:
    """What torch was built for, by its own file, which is read without loading torch."""
    with contextlib.suppress(OSError, ImportError):
        return runpy.run_path(str(package_folder("torch") / "version.py"))
    return {}


def _visible(gpus: list[Gpu], variable: str) -> list[Gpu]:
    """Those that the variable names, by number or by id; without it all. As CUDA does, up to the first that is none."""
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
            Gpu(_text(nvml.nvmlDeviceGetName(handle)), nvml.nvmlDeviceGetMemoryInfo(handle).total, tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)) >= _BF16)
            for handle in handles
        ]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def load_nvml() -> Any:
    """NVIDIA's management library: its package, or the copy that Ray brings, without loading Ray."""
    if find_spec("pynvml") is not None:
        import pynvml

        return pynvml
    if _NVML not in sys.modules:
        spec = spec_from_file_location(_NVML, package_folder("ray") / "_private" / "thirdparty" / "pynvml" / "pynvml.py")
        assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
        sys.modules[_NVML] = module_from_spec(spec)  # it looks for itself there
        spec.loader.exec_module(sys.modules[_NVML])
    return sys.modules[_NVML]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _amd() -> list[Gpu]:
    found = []
    for node in sorted(_KFD.glob("*/properties"), key=lambda path: int(path.parent.name)):
        with contextlib.suppress(OSError, ValueError):
            values = dict(line.split() for line in node.read_text().splitlines())
            found += [Gpu("AMD GPU", None, True)] if int(values.get("simd_count", 0)) else []
    return found
