"""torch: what it documents for extensions but keeps under private names, and two settings that it has no
function for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any


def dispatch_mode() -> type:
    """`TorchDispatchMode`, the base class for code that sees every operation. torch has it in a private module only."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tensors_in(tree: Any) -> Iterator[Any]:
    """All tensors in the result of an operation: a tensor, or nested lists, tuples and dicts of tensors. torch's
    function for such trees is private.
    """
    import torch
    from torch.utils._pytree import tree_iter

    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


def storage_key(storage: Any) -> int:
    """A number that identifies an `UntypedStorage` as long as it is alive. On the meta device all storages have the
    address 0.
    """
    return storage._cdata


def is_weight(tensor: Any) -> bool:
    """Is the tensor a parameter, or a view of one (experts' weights are used transposed)? The base of a view has a
    private name only.
    """
    import torch

    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


def reads_value(function: Any) -> bool:
    """Is this the operation, as a dispatch mode sees it, by which Python reads a tensor's value (`item`, `bool`)?"""
    import torch

    return function is torch.ops.aten._local_scalar_dense.default


def plain_functions() -> Any:
    """A context in which subclasses of tensors are treated as plain tensors. torch documents it for
    `__torch_function__`, but it is in a private module.
    """
    import torch

    return torch._C.DisableTorchFunctionSubclass()


def when_backward_ends(loss: Any, call: Callable[[], None]) -> None:
    """Call `call` in the backward pass from `loss` when all gradients of this rank are computed, before DDP waits for
    those of the others. The engine's callbacks are called in the order in which they were asked for; DDP asks later,
    with its last bucket. There is no public function for it.
    """
    from torch.autograd import Variable

    if loss.requires_grad:
        loss.register_hook(lambda gradient: Variable._execution_engine.queue_callback(call))


def set_last_rates(scheduler: Any, rates: list[float]) -> None:
    """Set what `scheduler.get_last_lr` returns, and `Trainer` logs, until the scheduler's next step. Otherwise only
    `step` sets it.
    """
    scheduler._last_lr = rates


def set_group_timeout(seconds: float) -> None:
    """Patch: the timeout of process groups that are created later without one, such as DeepSpeed's. torch gives these a
    constant instead of the timeout of the default group: ten minutes with NCCL.
    """
    from torch.distributed import distributed_c10d

    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        if hasattr(distributed_c10d, name):
            setattr(distributed_c10d, name, timedelta(seconds=seconds))


@contextlib.contextmanager
def replaced_functions(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Patch: while inside, functions of `module`, which may be `torch.nn.functional` or the class `torch.Tensor`, are
    replaced. A torch mode would not do: it is not active in the backward pass, where checkpointed layers run again in a
    thread of autograd.
    """
    before = {name: vars(module).get(name) for name in functions}  # a function that a class inherits is not in `vars`
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is None:
                delattr(module, name)
            else:
                setattr(module, name, function)
