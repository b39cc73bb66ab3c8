"""Versions of the installed packages on which the bits of a run depend."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("raytrain-nlp", "torch", "transformers", "deepspeed", "ray", "numpy", "tokenizers")


def package_versions() -> dict[str, str]:
    """By name; "unknown" for one that is not installed: this package itself may run from a source tree."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
