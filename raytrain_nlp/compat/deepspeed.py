"""Private names of DeepSpeed, and how it is imported."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any


def import_deepspeed() -> Any:
    """DeepSpeed without what costs each worker seconds and is used by none: its autotuner's optional `import mlflow`, and the compiler
    that its Muon optimizer, of which every ZeRO engine asks whether it is used, loads to decorate three functions."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # an import of it then fails like that of a package that is not installed
    try:
        import deepspeed
    finally:
        if absent:
            del sys.modules["mlflow"]
    with contextlib.suppress(ImportError, AttributeError):  # where a version has it elsewhere, it costs its seconds
        from deepspeed.runtime import compiler

        compile_now, compiler.compile = compiler.compile, lambda: _compiled_when_called
        try:
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
        finally:
            compiler.compile = compile_now
    return deepspeed


def _compiled_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.compile` makes of it, made at its first call."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function)

    return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))
