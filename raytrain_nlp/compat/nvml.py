"""NVIDIA's management library (NVML), by its Python bindings."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from typing import Any

from raytrain_nlp.host.packages import package_folder

_NVML = "raytrain_nlp_nvml"


def load_nvml() -> Any:
    """The bindings: the package `nvidia-ml-py`, or the copy inside Ray, which is loaded from its file. Importing Ray or
    torch just to find GPUs would take seconds.
    """
    if find_spec("pynvml") is not None:
        import pynvml

        return pynvml
    if _NVML not in sys.modules:
        spec = spec_from_file_location(
            _NVML, package_folder("ray") / "_private" / "thirdparty" / "pynvml" / "pynvml.py"
        )
        assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
        sys.modules[_NVML] = module_from_spec(spec)  # the module looks itself up there
        spec.loader.exec_module(sys.modules[_NVML])
    return sys.modules[_NVML]
