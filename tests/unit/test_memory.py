"""The parts of a memory plan: ZeRO's published figures, what is offloaded, amounts as they are written."""

from __future__ import annotations

import numpy as np
import pytest

import raytrain_nlp
from raytrain_nlp.memory.activations import StepTrace
from raytrain_nlp.memory.available import parse_bytes
from raytrain_nlp.memory.factors import moment_bytes
from raytrain_nlp.memory.zero import Setting, Weights, model_states, step_memory
from raytrain_nlp.verbs.calibrate import predict_mean


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al. 2020: 7.5 billion parameters on 64 GPUs, mixed precision with Adam."""
    setting = Setting(zero_stage=stage, num_workers=64, use_gpu=True, mixed=True, weight_bytes=2 if stage == 0 else 4)
    states = model_states(Weights(7_500_000_000, 7_500_000_000), setting)
    total = (
        states.total if stage else states.weights + states.gradients + 7.5e9 * 12
    )  # without ZeRO there is no master copy here, but the paper has one
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_states_of_an_adapter_and_in_fp32() -> None:
    """Frozen weights have no gradient and no optimizer; in fp32 stage 2 keeps a master copy, stage 3 none."""
    weights = Weights(total=1_000, trainable=100)
    plain = model_states(weights, Setting(zero_stage=0, num_workers=2, use_gpu=False))
    assert (plain.weights, plain.gradients, plain.optimizer) == (4_000, 400, 800)
    second, third = (model_states(weights, Setting(zero_stage=stage, num_workers=2, use_gpu=False)) for stage in (2, 3))
    assert (second.weights, second.gradients, second.optimizer) == (4_000, 200, 600)
    assert (third.weights, third.gradients, third.optimizer) == (2_000, 200, 400)
    quantized = model_states(
        Weights(total=1_000, trainable=100, quantized=800),
        Setting(zero_stage=0, num_workers=1, use_gpu=True, weight_bytes=2, quantized_bytes=0.5),
    )
    assert quantized.weights == 200 * 2 + 800 / 2


def test_offloaded_states_leave_the_gpu() -> None:
    weights, trace = Weights(1_000, 1_000), StepTrace(points=((0, 100, 0), (1_000, 50, 0)), small_peak=100)
    setting = Setting(zero_stage=3, num_workers=2, use_gpu=True, mixed=True, offload_optimizer=True, offload_param=True)
    parts = step_memory(weights, setting, trace)
    assert (parts["weights"], parts["gradients"], parts["optimizer"], parts["host"]) == (
        0,
        0,
        0,
        1_000 * (2 + 2 + 12) / 2,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("80 GiB", 80 * 2**30), ("512m", 512 * 10**6), ("1.5T", 1_500 * 10**9), ("1024", 1024)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text, "here") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "80 apples"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(raytrain_nlp.InputError, match="here: is no amount of memory"):
        parse_bytes(text, "here")


def test_mean_step_follows_the_tokens_of_the_plan() -> None:
    """Seconds that are a constant and a share of the tokens are found again; a line that no step can follow is not
    used.
    """
    tokens = np.array([100, 400, 250, 300])
    assert predict_mean(tokens, 0.5 + tokens / 1000, 500) == pytest.approx(1.0)
    assert predict_mean(tokens, 1 - tokens / 1000, 500) == pytest.approx((1 - tokens / 1000).mean())
    assert predict_mean(tokens, tokens / 1000 - 0.05, 200) == pytest.approx(
        200 * (tokens / 1000 - 0.05).sum() / tokens.sum()
    )
    assert predict_mean(np.array([100, 100]), np.array([1.0, 3.0]), 700) == 2


@pytest.mark.parametrize(
    ("optim", "size"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("adamw_bnb_8bit", 2),
        ("paged_adamw_8bit", 2),
        ("adamw_torch_4bit", 1),
        ("lion_32bit", 4),
        ("paged_lion_32bit", 4),
        ("lion_8bit", 1),
        ("paged_lion_8bit", 1),
        ("rmsprop_bnb_8bit", 1),
        ("ademamix", 12),
        ("ademamix_8bit", 3),
        ("adafactor", 0),
        ("sgd", 0),
    ],
)
def test_bytes_of_an_optimizers_moments_by_hand(optim: str, size: float) -> None:
    """Moments a parameter (Adam two, Lion one, AdEMAMix three) times the bytes of each."""
    assert moment_bytes(optim) == size
