"""Installed packages: their folders, and the versions on which the exact results of a run depend."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("raytrain-nlp", "torch", "transformers", "deepspeed", "ray", "numpy", "tokenizers")


def package_versions() -> dict[str, str]:
    """Package -> version. It is "unknown" for one without metadata, as this package is when it runs from a
    source tree.
    """
    return {name: _version(name) for name in _PACKAGES}


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it. Raises `ImportError` where it is not installed,
    or is a single module.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{name} is not installed", name=name)
    return Path(next(iter(spec.submodule_search_locations)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
