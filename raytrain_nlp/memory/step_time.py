"""What a step of a setting takes, to compare settings of one job. A model of what differs between them, not a forecast.

A micro-batch takes as long as the device computes, or as long as Python launches it, whichever is longer; a step is all
its micro-batches and what its ranks send each other. Work is counted as in Kaplan et al. 2020, section 2.1 (2
operations a parameter and token for the forward, 4 for the backward; recomputing is one more forward), traffic as in
Rajbhandari et al. 2020 (ZeRO), section 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from raytrain_nlp.memory.zero import Setting, Weights, bytes_per_parameter

_LAUNCH = {0: 0.25e-3, 1: 0.4e-3, 2: 0.45e-3, 3: 1.8e-3}
"""Seconds of Python for each parameter tensor in a forward and backward, by ZeRO stage. Of stage 3 measured: 390 to
440 ms of a step on an H200 with 200 tensors, in which its kernels ran for 222 ms; the others are estimates.
"""
_LAUNCH_FORWARD = 1 / 3
"""Share of it that a second forward costs."""


@dataclass(frozen=True)
class _Device:
    half: float
    """Operations a second in bf16 or fp16, as training reaches them."""
    full: float
    """In fp32."""
    memory: float
    """Bytes a second."""
    link: float
    """Bytes a second between ranks."""
    launches: bool
    """Does Python launch kernels that run by themselves?"""


_GPU = _Device(half=250e12, full=60e12, memory=2.5e12, link=100e9, launches=True)
"""Of the H100's order: in the measured step above kernels ran at 265e12."""
_CPU = _Device(half=100e9, full=100e9, memory=20e9, link=2e9, launches=False)


def step_seconds(weights: Weights, setting: Setting, recomputes: bool, micro_batches: int, tokens: float) -> float:
    """Seconds of a step, where `tokens` are those of one micro-batch."""
    device = _GPU if setting.use_gpu else _CPU
    forwards = 2 if recomputes else 1
    work = 2 * weights.total * (forwards + 1) + 2 * weights.trainable  # of a token
    computed = tokens * work / (device.half if setting.mixed or setting.weight_bytes < 4 else device.full)
    read = weights.total * (2 if setting.mixed else setting.weight_bytes) * (forwards + 1) / device.memory
    launched = 0.0
    if device.launches:
        launched = weights.tensors * _LAUNCH[setting.zero_stage] * (1 + _LAUNCH_FORWARD * (forwards - 1))
    return (
        micro_batches * max(computed + read, launched) + _sent(weights, setting, forwards, micro_batches) / device.link
    )


def _sent(weights: Weights, setting: Setting, forwards: int, micro_batches: int) -> float:
    """Bytes a rank sends in a step."""
    if setting.num_workers == 1:
        return 0.0
    size = min(bytes_per_parameter(setting)[0], 2 if setting.mixed else 4)
    reduced = size * weights.trainable
    if setting.zero_stage == 3:
        return micro_batches * ((forwards + 1) * size * weights.total + reduced)
    return (micro_batches if setting.zero_stage == 2 else 1) * reduced + reduced
