"""What a training step reads back from its device, counted without one.

A GPU is played by the CPU with an index: `cpu:0` and `cpu` are one device to torch, but a copy from one to the other is
an operation of its own. So a batch is on the host until it is copied to the arguments' device, all that is computed of
it from there on is the device's, and everything that a GPU's host would have to wait for is seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

DEVICE = torch.device("cpu", 0)
_WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its shape, the host needs."""
_MASKABLE = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Those that look for what is not zero in an index of booleans."""
_METHODS = ("tolist", "numpy", "__array__", "cpu")
"""Of a tensor, which on CPU are no operation of their own."""
_SKIPPED = ("/torch/", "/contextlib.py", "/host_reads.py", "/unittest/mock.py")


class HostReads(TorchDispatchMode):
    """While active, notes every read of a tensor that is not the host's, by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        """`operation at file:line function`, in order."""
        self._host: dict[int, Any] = {}

    def at_host(self, tensors: Iterable[Any]) -> None:
        """These are the host's own."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._host[storage._cdata] = storage

    def is_host(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        hosts = bool(given) and all(map(self.is_host, given))
        if name == "copy_" and self.is_host(args[0]) and not hosts:
            self._note("copy to the host")
        elif not hosts and _waits(name, args, kwargs):
            self._note(name)
        result = func(*args, **kwargs)
        if hosts and not (name == "_to_copy" and kwargs.get("device") == DEVICE):
            self.at_host(tree_leaves(result))
        return result

    def _note(self, what: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back and any(part in frame.f_code.co_filename for part in _SKIPPED):
            frame = frame.f_back
        place = "/".join(Path(frame.f_code.co_filename).parts[-3:])
        self.found.append(f"{what} at {place}:{frame.f_lineno} {frame.f_code.co_name}")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with contextlib.ExitStack() as patches:
            for name in _METHODS:
                patches.enter_context(mock.patch.object(torch.Tensor, name, self._noting(name), create=True))
            patches.enter_context(mock.patch.object(torch.Tensor, "to", self._to()))
            patches.enter_context(self)
            yield

    def _noting(self, name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.is_host(tensor):
                self._note(name)
            return method(tensor, *args, **kwargs)

        return read

    def _to(self) -> Any:
        method = torch.Tensor.to

        def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if "cpu" in [*args, kwargs.get("device")] and not self.is_host(tensor):
                self._note("to the host")
            return method(tensor, *args, **kwargs)

        return to


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name in _MASKABLE:
        return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in _WAITING and kwargs.get("output_size") is None


class Watch(TrainerCallback):
    """Counts from the end of the step before `step` to its end: its batch, forward, backward pass and update, and what
    lies between.
    """

    def __init__(self, reads: HostReads, step: int):
        self._reads, self._step = reads, step
        self._stack = contextlib.ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step == self._step - 1:
            inner = getattr(optimizer, "optimizer", optimizer)
            for values in inner.state.values():  # a count of steps stays on the host
                self._reads.at_host([values.get("step")])
            self._stack.enter_context(self._reads.active())
        elif state.global_step == self._step:
            self._stack.close()
