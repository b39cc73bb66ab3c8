"""Evaluation that generates, under ZeRO-3: weights gathered once, not layer by layer for every token of every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.compat.deepspeed import without_zero3_hooks
from raytrain_nlp.distributed.collectives import gather_objects
from raytrain_nlp.distributed.device import free_memory

_SHARE = 0.8
"""Largest share of a rank's free memory that gathered weights may take."""


@contextlib.contextmanager
def gathered_weights(trainer: Any) -> Iterator[Any]:
    """Gather all ZeRO-3 weights on every rank while inside, and take away DeepSpeed's hooks, which would release them
    layer by layer.

    Yields the unwrapped model; None where the weights are not gathered: the run does not use ZeRO-3, or some rank has
    too little free memory. Collective: every rank must enter it.
    """
    offload = (
        getattr(getattr(trainer.deepspeed, "optimizer", None), "parameter_offload", None)
        if trainer.is_deepspeed_enabled
        else None
    )
    if offload is None:
        yield None
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    sharded = [
        parameter for parameter in offload.module.parameters() if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE
    ]
    whole = sum(parameter.ds_numel * parameter.element_size() for parameter in sharded)
    if not all(gather_objects(whole < _SHARE * free_memory())):
        yield None
        return
    with deepspeed.zero.GatheredParameters(sharded), without_zero3_hooks(offload):
        yield trainer.accelerator.unwrap_model(trainer.model)
