"""What torch documents for those who extend it, and keeps under private names; and two settings it has no function
for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any


def dispatch_mode() -> type:
    """`TorchDispatchMode`, the class to see every operation with, which torch has under a private module only."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def tensors_in(tree: Any) -> Iterator[Any]:
    """All tensors in what an operation returns: one, or lists, tuples and dicts of them. torch's walk over such trees
    is private.
    """
    import torch
    from torch.utils._pytree import tree_iter

    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


def storage_key(storage: Any) -> int:
    """What tells one `UntypedStorage` from another as long as both live; on the meta device all have the address 0."""
    return storage._cdata


def is_weight(tensor: Any) -> bool:
    """Is it a parameter, or a view of one (experts' weights are used transposed)? torch tells whose view a tensor is
    under a private name only.
    """
    import torch

    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


def reads_value(function: Any) -> bool:
    """Is an operation, as a dispatch mode sees it, the one by which Python asks a tensor for its value (`item`,
    `bool`)?
    """
    import torch

    return function is torch.ops.aten._local_scalar_dense.default


def plain_functions() -> Any:
    """A context in which subclasses of tensors are taken as plain ones; torch documents it for `__torch_function__`,
    under its private module.
    """
    import torch

    return torch._C.DisableTorchFunctionSubclass()


def set_last_rates(scheduler: Any, rates: list[float]) -> None:
    """What `scheduler.get_last_lr` returns, and `Trainer` logs, until its next step; a scheduler sets it nowhere but in
    `step`.
    """
    scheduler._last_lr = rates


def set_group_timeout(seconds: float) -> None:
    """Patch: how long ranks wait for each other in groups that are made from here on without a word about it:
    DeepSpeed's.

    torch gives a new group not the time of the first one but a constant of its own, ten minutes with NCCL.
    """
    from torch.distributed import distributed_c10d

    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        if hasattr(distributed_c10d, name):
            setattr(distributed_c10d, name, timedelta(seconds=seconds))


@contextlib.contextmanager
def replaced_functions(module: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Patch: while inside, these names of `module`, be it `torch.nn.functional` or `torch.Tensor`, are other functions.
    A mode of torch would not be there in the backward pass, where checkpointed layers run again in a thread of
    autograd's.
    """
    before = {name: vars(module).get(name) for name in functions}  # what a class inherits is not its own
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
