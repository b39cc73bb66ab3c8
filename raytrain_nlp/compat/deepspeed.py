"""DeepSpeed: how it is imported, and what its engine and ZeRO-3 have no setting for."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any


def import_deepspeed() -> Any:
    """Import DeepSpeed without two imports that take seconds in each worker and are never used: its autotuner's
    optional `import mlflow` (2.9 s of CPU), and torch's compiler, which its Muon optimizer loads to decorate three
    functions (5.0 s, 110 MB). Every ZeRO engine imports that optimizer.

    Patch of `sys.modules` and of DeepSpeed's `compile` during the import.
    """
    absent = "mlflow" not in sys.modules
    if absent:
        # None is allowed here: importing the module then fails as if it were not installed
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if absent:
            del sys.modules["mlflow"]
    with contextlib.suppress(ImportError, AttributeError):  # elsewhere in another version: no harm
        from deepspeed.runtime import compiler

        compile_now, compiler.compile = compiler.compile, lambda: _compiled_when_called
        try:
            import deepspeed.runtime.zero.muon.original_muon
        finally:
            compiler.compile = compile_now
    return deepspeed


def _compiled_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled by `torch.compile` when it is first called."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function)

    return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))


def forget_accelerator(use_gpu: bool) -> None:
    """Patch: where DeepSpeed is loaded and has chosen the other kind of device, let it choose again. Its own
    `set_accelerator` takes an accelerator and does not create one.
    """
    real: Any = sys.modules.get("deepspeed.accelerator.real_accelerator")
    found = getattr(real, "ds_accelerator", None)
    if found is not None and (found.device_name() == "cpu") == use_gpu:
        real.ds_accelerator = None


def apply_without_shared_memory_op() -> None:
    """Patch: DeepSpeed believes that its all-reduce through shared memory is not installed. Only inference needs it,
    its first use would run g++ for over a minute, and no setting turns it off.
    """
    import_deepspeed().ops.__compatible_ops__["deepspeed_shm_comm"] = False


def apply_checkpoint_engine(engine: Any, checkpoint_engine: Any, load_checkpoint: Callable[..., Any]) -> None:
    """Patch of one engine: it reads and writes files with `checkpoint_engine`, loads checkpoints with
    `load_checkpoint`, and copies no recovery script into them. DeepSpeed chooses only among its own checkpoint engines,
    whose default loads pickles.
    """
    engine.checkpoint_engine, engine.load_checkpoint = checkpoint_engine, load_checkpoint
    engine._copy_recovery_script = lambda save_path: None


@contextlib.contextmanager
def checkpoint_parts(engine: Any, model: str, optimizer: str, ranks: int, read: Callable[[str], Any]) -> Iterator[None]:
    """Patch of one engine: while inside, it finds one file with the state of the model and one with the optimizer state
    of each rank, and receives the return values of `read` for them. Without it, DeepSpeed loads ZeRO checkpoints of
    another number of ranks only after a conversion on disk.

    Args:
        model: name of the file with the state of the model.
        optimizer: name of the file with optimizer states, the same for all ranks.
        ranks: number of ranks that wrote the checkpoint.
    """
    engine._get_all_ckpt_names = lambda *args: [model]
    engine._get_all_zero_checkpoint_names = lambda *args, **kwargs: [optimizer] * ranks
    engine.checkpoint_engine.load = lambda path, map_location=None: read(path)
    try:
        yield
    finally:
        del engine._get_all_ckpt_names, engine._get_all_zero_checkpoint_names, engine.checkpoint_engine.load


def apply_before_update(engine: Any, call: Callable[[], None]) -> None:
    """Patch of one engine: call `call` before each optimizer update. With DeepSpeed, accelerate's backward pass ends
    with `engine.step`, and there is no hook between the two.
    """
    update = engine.step

    def step(*args: Any, **kwargs: Any) -> Any:
        call()
        return update(*args, **kwargs)

    engine.step = step


_COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all_single"),
)


def apply_around_collectives(around: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    """Patch of DeepSpeed's connection of this process: its collectives, and waiting for those that were only begun, run
    inside of `around()`. DeepSpeed logs how long they take, but does not tell it to anybody.
    """
    connection = import_deepspeed().comm.comm.cdb
    if connection is None or hasattr(connection, _AROUND):
        return
    setattr(connection, _AROUND, True)

    def wrapped(collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with around():
                work = collective(*args, **kwargs)
            return _Work(work, around) if hasattr(work, "wait") else work

        return timed

    for name in _COLLECTIVES:
        setattr(connection, name, wrapped(getattr(connection, name)))


_AROUND = "raytrain_nlp_around"


class _Work:
    """A collective that has been begun; it is waited for inside of a context."""

    def __init__(self, work: Any, around: Callable[[], contextlib.AbstractContextManager[Any]]):
        self._work, self._around = work, around

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with self._around():
            return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


UPDATE_FUNCTION = "_take_model_step"
"""The engine's method that is on a thread's stack during the optimizer's step. It distinguishes a slow step from a slow
backward pass."""


@contextlib.contextmanager
def without_zero3_hooks(offload: Any) -> Iterator[None]:
    """While inside, ZeRO-3 does not gather and release weights layer by layer, because they have been gathered as a
    whole. DeepSpeed does the same for its compiler, but not in a public function.

    Args:
        offload: the engine's `optimizer.parameter_offload`.
    """
    from deepspeed.runtime.zero import parameter_offload

    offload._remove_module_hooks()
    offload.forward_hooks.clear()
    offload.backward_hooks.clear()
    modules = len(parameter_offload.FWD_MODULE_STACK)
    try:
        yield
    finally:
        offload.setup_zero_stage3_hooks()
        del parameter_offload.FWD_MODULE_STACK[modules:]  # the root module stays, put there by DeepSpeed
