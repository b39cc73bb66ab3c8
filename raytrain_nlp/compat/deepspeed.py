"""DeepSpeed: how it is imported, and what its engine and its ZeRO-3 have no setting for."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any


def import_deepspeed() -> Any:
    """DeepSpeed without what costs each worker seconds and is used by none: its autotuner's optional `import mlflow`
    (2.9 s of CPU), and the compiler that its Muon optimizer, of which every ZeRO engine asks whether it is used, loads
    to decorate three functions (5.0 s, 110 MB).

    Patch of `sys.modules` and of DeepSpeed's `compile`, while it is imported.
    """
    absent = "mlflow" not in sys.modules
    if absent:
        # Python allows it: an import of it then fails like that of a package that is not installed
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if absent:
            del sys.modules["mlflow"]
    with contextlib.suppress(ImportError, AttributeError):  # where a version has it elsewhere, it costs its seconds
        from deepspeed.runtime import compiler

        compile_now, compiler.compile = compiler.compile, lambda: _compiled_when_called
        try:
            import deepspeed.runtime.zero.muon.original_muon
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


def forget_accelerator(use_gpu: bool) -> None:
    """Patch: where DeepSpeed is loaded and computes on the other kind of device, let it look again when it is next
    asked; its own `set_accelerator` takes an accelerator, and makes none."""
    real: Any = sys.modules.get("deepspeed.accelerator.real_accelerator")
    found = getattr(real, "ds_accelerator", None)
    if found is not None and (found.device_name() == "cpu") == use_gpu:
        real.ds_accelerator = None


def apply_without_shared_memory_op() -> None:
    """Patch: DeepSpeed takes its all-reduce through shared memory for not installed. Only inference uses it, and its
    first use would run g++ for over a minute; there is no setting against it."""
    import_deepspeed().ops.__compatible_ops__["deepspeed_shm_comm"] = False


def apply_checkpoint_engine(engine: Any, checkpoint_engine: Any, load_checkpoint: Callable[..., Any]) -> None:
    """Patch of one engine: it reads and writes files by `checkpoint_engine`, is loaded by `load_checkpoint`, and copies
    no recovery script into checkpoints. DeepSpeed chooses among its own checkpoint engines only, the default of which
    loads pickles."""
    engine.checkpoint_engine, engine.load_checkpoint = checkpoint_engine, load_checkpoint
    engine._copy_recovery_script = lambda save_path: None


@contextlib.contextmanager
def checkpoint_parts(engine: Any, model: str, optimizer: str, ranks: int, read: Callable[[str], Any]) -> Iterator[None]:
    """Patch of one engine: while inside, it finds the states of the model and of each of so many ranks' optimizers
    under two names, and gets what `read` returns for them. DeepSpeed loads ZeRO checkpoints of another number of ranks
    only after a conversion on disk."""
    engine._get_all_ckpt_names = lambda *args: [model]
    engine._get_all_zero_checkpoint_names = lambda *args, **kwargs: [optimizer] * ranks
    engine.checkpoint_engine.load = lambda path, map_location=None: read(path)
    try:
        yield
    finally:
        del engine._get_all_ckpt_names, engine._get_all_zero_checkpoint_names, engine.checkpoint_engine.load


def apply_before_update(engine: Any, call: Callable[[], None]) -> None:
    """Patch of one engine: `call` before each update. accelerate's backward pass of DeepSpeed ends with `engine.step`,
    and no hook is between.
    """
    update = engine.step

    def step(*args: Any, **kwargs: Any) -> Any:
        call()
        return update(*args, **kwargs)

    engine.step = step


UPDATE_FUNCTION = "_take_model_step"
"""The engine's method that is on a thread's stack while the optimizer steps, by which a slow step is told from a slow
backward pass.
"""


@contextlib.contextmanager
def without_zero3_hooks(offload: Any) -> Iterator[None]:
    """While inside, ZeRO-3 (an engine's `optimizer.parameter_offload`) does not fetch and release weights layer by
    layer, for they have been gathered as a whole. DeepSpeed does the same for its compiler, by no public function."""
    from deepspeed.runtime.zero import parameter_offload

    offload._remove_module_hooks()
    offload.forward_hooks.clear()
    offload.backward_hooks.clear()
    modules = len(parameter_offload.FWD_MODULE_STACK)
    try:
        yield
    finally:
        offload.setup_zero_stage3_hooks()
        del parameter_offload.FWD_MODULE_STACK[modules:]  # it holds the root module since DeepSpeed's own set-up
