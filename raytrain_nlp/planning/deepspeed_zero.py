"""Checks of a DeepSpeed JSON that DeepSpeed itself makes only on the workers: an "auto" that nothing replaces, and ZeRO
features that need a GPU, another number of workers, or a library that is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.config.cluster import WorkersConfig
from raytrain_nlp.errors import Problem

_WHERE = "deepspeed.config"
FILLED = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "fp16.enabled",
    "bf16.enabled",
    *(f"optimizer.params.{key}" for key in ("lr", "betas", "eps", "weight_decay")),
    *(f"scheduler.params.{key}" for key in ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")),
    *(
        f"zero_optimization.{key}"
        for key in ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    ),
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}
"""Keys for which transformers or accelerate replace "auto" by a value."""
_ON_GPU_ONLY = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def check_autos(config: dict[str, Any], prefix: str = "") -> Iterator[Problem]:
    """A problem for each "auto" that nothing replaces.

    Args:
        prefix: dotted key of the section `config`, with a dot at its end; empty for the whole JSON.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            yield from check_autos(value, f"{prefix}{key}.")
        elif value == "auto" and f"{prefix}{key}" not in FILLED:
            yield Problem(f"{_WHERE}.{prefix}{key}", 'nothing fills "auto" there', "Write a value, or remove it.")


def check_zero(zero: Any, workers: WorkersConfig) -> Iterator[Problem]:
    """A problem for each feature of ZeRO that these workers cannot have.

    Args:
        zero: the section `zero_optimization`.
    """
    if not isinstance(zero, dict):
        return
    where, needs_gpu = f"{_WHERE}.zero_optimization", "needs a GPU (workers.use_gpu is false)"
    if not workers.use_gpu:
        yield from (Problem(f"{where}.{key}", needs_gpu, "Remove it.") for key in _ON_GPU_ONLY if zero.get(key))
    size, count = zero.get("zero_hpz_partition_size", 1), workers.num_workers
    if isinstance(size, int) and isinstance(count, int) and size > 0 and count % size:
        yield Problem(
            f"{where}.zero_hpz_partition_size",
            f"does not divide the workers ({size} and {count})",
            "Give a divisor, as a rule the workers of a node.",
        )
    for part in ("offload_optimizer", "offload_param"):
        section = zero.get(part)
        if not isinstance(section, dict):
            continue
        if section.get("super_offload") and not workers.use_gpu:
            yield Problem(f"{where}.{part}.super_offload", needs_gpu, "Remove it.")
        if section.get("device") == "nvme" and not os.environ.get("RAY_ADDRESS") and not _has_async_io():
            yield Problem(
                f"{where}.{part}.device",
                "nvme needs DeepSpeed's async_io, which cannot be built here",
                "Install libaio-dev and g++, or use cpu.",
            )


def _has_async_io() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        return AsyncIOBuilder().is_compatible(verbose=False)
    except Exception:  # noqa: BLE001 - the search for a compiler may raise anything
        return False
