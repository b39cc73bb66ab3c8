"""accelerate: hooks around methods of the `Accelerator`, which `Trainer` creates itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def apply_backward(accelerator: Any, weigh: Callable[[Any], Any], **defaults: Any) -> None:
    """Patch: the backward pass starts from the loss that `weigh` returns. This cannot be an override of `Trainer`,
    because a user's `training_step` calls `accelerator.backward` itself.

    Args:
        defaults: keyword arguments for `backward`, where its caller does not give them.
    """
    backward = accelerator.backward
    accelerator.backward = lambda loss, **kwargs: backward(weigh(loss), **{**defaults, **kwargs})


def apply_prepare(accelerator: Any, before: Callable[[], None], made: Callable[[Any], None]) -> None:
    """Patch: call `before` when model and optimizer are about to be prepared, and `made` with each object that was
    prepared. `Trainer` prepares and then loads the checkpoint in one method, and by then the DeepSpeed engine must read
    checkpoints without pickle.
    """
    prepare = accelerator.prepare

    def prepare_and_tell(*args: Any, **kwargs: Any) -> Any:
        before()
        prepared = prepare(*args, **kwargs)
        for part in prepared if isinstance(prepared, tuple) else (prepared,):
            made(part)
        return prepared

    accelerator.prepare = prepare_and_tell
