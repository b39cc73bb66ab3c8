"""accelerate's `Accelerator`, which `Trainer` makes itself, from arguments: what is to happen around its methods is put
around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def apply_backward(accelerator: Any, weigh: Callable[[Any], Any], **defaults: Any) -> None:
    """Patch: the loss that goes into the backward pass is what `weigh` makes of it; `defaults`: keyword arguments of
    `backward` that are not given. A user's `training_step` calls `accelerator.backward` itself, so no override of
    `Trainer`'s can do it."""
    backward = accelerator.backward
    accelerator.backward = lambda loss, **kwargs: backward(weigh(loss), **{**defaults, **kwargs})


def apply_prepare(accelerator: Any, before: Callable[[], None], made: Callable[[Any], None]) -> None:
    """Patch: `before` is called before model and optimizer are prepared, `made` with each part that comes out.
    `Trainer` prepares and then loads the checkpoint in one method, and the engine must read without pickle by then."""
    prepare = accelerator.prepare

    def prepare_and_tell(*args: Any, **kwargs: Any) -> Any:
        before()
        prepared = prepare(*args, **kwargs)
        for part in prepared if isinstance(prepared, tuple) else (prepared,):
            made(part)
        return prepared

    accelerator.prepare = prepare_and_tell
