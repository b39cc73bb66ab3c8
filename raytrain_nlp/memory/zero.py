"""Memory of one rank: what ZeRO leaves of the model's states, and the buffers DeepSpeed and DDP work in. Arithmetic
only.

Model states are those of Rajbhandari et al. 2020 (ZeRO), section 3: weights, gradients and the optimizer's state, each
whole on every rank until its stage divides it by the number of ranks. Buffers follow DeepSpeed 0.19
(`stage_1_and_2.py`, `stage3.py`) and torch's DDP; their sizes are settings of DeepSpeed's configuration, in elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raytrain_nlp.memory.activations import StepTrace

HEAP_SHARE, HEAP_SHARE_FROZEN = 1.5, 2.4
"""Bytes of glibc's heap for each byte of small tensors live at once; the second is for adapters on frozen weights.
Torch asks for 64 bytes more than a tensor has, to align it, so the hole a tensor leaves is too small for the next of
its size until its neighbours are free; an adapter puts small tensors between the large ones. Measured in plain forward
and backward passes, without any of this package: 1.47 and 1.52, with adapters 2.4. With jemalloc, or a fixed
MALLOC_MMAP_THRESHOLD_, it would be 1.
"""
_WINDOW = 64 << 20
_ADAM_MOMENTS = 8
"""Bytes of Adam's two moments in fp32."""
_MASTER = 4


@dataclass(frozen=True)
class Weights:
    """Elements of a model's parameters."""

    total: int
    trainable: int
    persistent: int = 0
    """In parameters so small that stage 3 keeps them whole."""
    small: int = 0
    """Elements of parameters of less than `LARGE` bytes, which a CPU allocates on the heap when they are gathered."""
    quantized: int = 0
    """Frozen, and loaded in `Setting.quantized_bytes` each."""
    tensors: int = 0
    """Parameters, whatever their size: what Python's share of a step grows with."""


@dataclass(frozen=True)
class Setting:
    """What the memory of a rank depends on besides the model."""

    zero_stage: int
    num_workers: int
    use_gpu: bool
    mixed: bool = False
    """bf16 or fp16: under ZeRO weights and gradients of 2 bytes and a master copy; under DDP copies of the weights for
    the forward.
    """
    weight_bytes: float = 4
    """Of a weight as it is loaded."""
    quantized_bytes: float = 0
    moment_bytes: float = _ADAM_MOMENTS
    """What the optimizer keeps of a weight besides its master copy."""
    offload_optimizer: bool = False
    offload_param: bool = False
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    max_live: int = 1_000_000_000
    overlap: bool = False
    accumulation: int = 1
    """Micro-batches of an update."""

    @property
    def keeps_gradients(self) -> bool:
        """Are all gradients there all through a step: as views of DDP's buckets, or from the micro-batch before?"""
        return not (self.zero_stage == 0 and self.use_gpu and self.num_workers == 1 and self.accumulation == 1)

    @property
    def autocasts(self) -> bool:
        """Are products computed in 16 bits from weights in fp32? DeepSpeed's stages have weights of 16 bits."""
        return self.mixed and self.zero_stage == 0 and self.weight_bytes == 4


@dataclass(frozen=True)
class States:
    """Bytes of the model's states on one rank."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


def bytes_per_parameter(setting: Setting) -> tuple[float, float, float]:
    """Bytes of weight, gradient and optimizer of one trained parameter, before sharding.

    Mixed precision: 2, 2 and 12 (fp32 master copy and Adam), ZeRO section 3.1. In fp32 DeepSpeed's stages 1 and 2 keep
    a master copy as well, stage 3 does not.
    """
    if setting.mixed and setting.zero_stage:
        return 2, 2, _MASTER + setting.moment_bytes
    master = _MASTER if setting.zero_stage in (1, 2) else 0
    return setting.weight_bytes, setting.weight_bytes, master + setting.moment_bytes * setting.weight_bytes / 4


def model_states(weights: Weights, setting: Setting) -> States:
    """Weights, gradients and optimizer of one rank; a frozen weight has neither of the last two.

    Stage 1 divides the optimizer's state by the number of ranks, stage 2 gradients as well, stage 3 weights as well.
    """
    weight, gradient, optimizer = bytes_per_parameter(setting)
    ranks, stage = setting.num_workers, setting.zero_stage
    return States(
        weights=((weights.total - weights.quantized) * weight + weights.quantized * setting.quantized_bytes)
        / (ranks if stage >= 3 else 1),
        gradients=weights.trainable * gradient / (ranks if stage >= 2 else 1),
        optimizer=weights.trainable * optimizer / (ranks if stage >= 1 else 1),
    )


def step_memory(weights: Weights, setting: Setting, trace: StepTrace) -> dict[str, float]:
    """Bytes of each part at the moment of a step when one rank needs most."""
    states = model_states(weights, setting)
    held, transient = _buffers(weights, setting)

    def gradient_bytes(done: int) -> float:
        return max(transient(done), states.gradients if setting.keeps_gradients else 0)

    if setting.use_gpu:
        gradients, live = trace.worst(gradient_bytes)
    else:  # small tensors stay with the heap, whatever moment they were live at
        gradients, live = trace.worst(gradient_bytes, large_only=True)
        live += heap_share(weights) * trace.small_peak
    parts = {
        "weights": states.weights,
        "gradients": min(states.gradients, gradients),
        "optimizer": states.optimizer,
        "activations": live,
    }
    parts["buffers"] = held + gradients - parts["gradients"]
    if setting.use_gpu and setting.offload_optimizer:  # which takes the gradients along
        parts["optimizer"], parts["gradients"], parts["host"] = 0.0, 0.0, states.optimizer + states.gradients
    if setting.use_gpu and setting.offload_param:
        parts["host"], parts["weights"] = parts.get("host", 0.0) + states.weights, 0.0
    return parts


def heap_share(weights: Weights) -> float:
    """Bytes of the heap for a byte that is live in it."""
    return HEAP_SHARE if weights.trainable == weights.total else HEAP_SHARE_FROZEN


def _buffers(weights: Weights, setting: Setting) -> tuple[float, Callable[[int], float]]:
    """Bytes held all through a step, and bytes of gradients on their way (with those that have arrived) by elements
    done.
    """
    weight, gradient, _ = bytes_per_parameter(setting)
    alone, trained = setting.num_workers == 1, weights.trainable
    bucket = min(trained, setting.reduce_bucket)
    if setting.zero_stage == 0:
        copies = 2 * weights.total if setting.mixed else 0.0  # autocast's
        held = copies + (0 if alone else _shared_windows(trained * gradient, setting))
        return held, lambda done: gradient * (trained if setting.keeps_gradients else min(done, trained))
    # a GPU's bucket is made as large as it may be; a CPU's has pages where gradients were written
    whole = setting.reduce_bucket if setting.use_gpu else bucket
    if setting.zero_stage < 3:
        made = (setting.reduce_bucket if setting.use_gpu else 0) * (2 if setting.overlap else 1)

        def staged(done: int) -> float:  # the bucket, then a flat copy of it that the ranks reduce
            filled = made or min(done, bucket)
            return gradient * (filled + (bucket if done and done >= min(trained, setting.reduce_bucket) else 0))

        return 0.0, staged
    live = min(weights.total, max(setting.max_live, weights.persistent))
    fetched = min(weights.total, setting.prefetch_bucket)
    copies = 1 if setting.use_gpu else 2  # gloo works on a copy of its own, both ways
    held = gradient * whole + weight * (live + fetched)
    if not setting.use_gpu:  # gathered and let go layer by layer
        held += weight * min(weights.small, live) * (heap_share(weights) - 1)
    kept = trained * gradient / setting.num_workers

    def scattered(done: int) -> float:
        if done and done >= bucket:
            return kept + gradient * bucket * copies
        return kept + weight * fetched * (copies - 1)

    return held, scattered


def _shared_windows(gradients: float, setting: Setting) -> float:
    """Windows of shared memory in which CPU ranks average gradients (`cpu/gradient_mean.py`): two of each rank, mapped
    by all.
    """
    return 0.0 if setting.use_gpu else setting.num_workers * 2 * min(gradients, _WINDOW)
