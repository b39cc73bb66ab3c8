"""Packed documents on a GPU: torch's own kernels of flash attention for several documents, and the masks of the other
implementations. The same on CPU: tests/unit/test_packed_attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
import torch

from raytrain_nlp.compat.transformers import replaced_flash
from raytrain_nlp.modeling import flash_kernels
from raytrain_nlp.modeling.document_lengths import document_lengths, with_lengths

ROWS = [[300, 200, 12], [511, 1], [64, 64, 64, 320], [512]]
LENGTHS = [length for row in ROWS for length in row]


@pytest.fixture(autouse=True)
def flash() -> Iterator[None]:
    with replaced_flash(flash_kernels.torch_attend, flash_kernels.torch_attend_documents):
        yield


@pytest.mark.parametrize("key_heads", [8, 2])
@pytest.mark.parametrize("size", [64, 40, 20])
@pytest.mark.parametrize("window", [-1, 31])
def test_kernels_compute_what_is_written_down(key_heads: int, size: int, window: int) -> None:
    """Results and gradients of bf16, against fp32 in plain torch."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    parts = [
        torch.randn((total, heads, size), device="cuda").bfloat16().requires_grad_()
        for heads in (8, key_heads, key_heads)
    ]
    exact = [part.detach().float().requires_grad_() for part in parts]
    ends = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).int()
    lengths = ends, ends, max(LENGTHS), max(LENGTHS)
    options: dict[str, Any] = {"causal": True, "window_size": (window, window)}
    found = flash_kernels.torch_attend_documents(*parts, *lengths, **options)
    truth = flash_kernels.plain_attend_documents(*exact, *lengths, **options)
    assert distance(found, truth) < 0.01
    bounds = ends.tolist()
    for begin, end in zip(bounds, bounds[1:]):  # each alone, by the same kernel
        alone = flash_kernels.torch_attend(*(part[begin:end][None] for part in parts), **options)[0]
        torch.testing.assert_close(found[begin:end], alone, atol=1e-5, rtol=0)
    direction = torch.randn_like(truth)
    found.backward(direction.bfloat16())
    truth.backward(direction)
    for part, other in zip(parts, exact, strict=True):
        assert distance(part.grad, other.grad) < 0.02
    rows = [part.detach().view(4, -1, *part.shape[1:]) for part in parts]
    plain = flash_kernels.plain_attend(*(row.float() for row in rows), **options)
    assert distance(flash_kernels.torch_attend(*rows, **options), plain) < 0.01


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.float() - truth).norm() / truth.norm())


def model_of(attention: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to("cuda", dtype).eval()


def batch_of(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in ROWS]).cuda()
    return {"input_ids": torch.randint(3, 1000, positions.shape).cuda(), "position_ids": positions, "use_cache": False}


def differences(attention: str, dtype: torch.dtype) -> tuple[float, bool]:
    """Between logits packed and alone, the largest; and do logits of a row's other documents change with its first?"""
    model, batch = model_of(attention, dtype), batch_of(1)
    complete = with_lengths if attention.startswith("flash") else dict
    with torch.no_grad():
        packed = model(**complete(batch)).logits.flatten(0, 1)
        ends = document_lengths(batch["position_ids"])["cu_seq_lens_q"].tolist()
        ids = batch["input_ids"].flatten()
        alone = [model(input_ids=ids[begin:end][None], use_cache=False).logits[0] for begin, end in zip(ends, ends[1:])]
        other = batch["input_ids"].clone()
        for number, row in enumerate(ROWS):
            other[number, : row[0]] = 1
        changed = model(**complete({**batch, "input_ids": other})).logits.flatten(0, 1)
    starts = {sum(map(sum, ROWS[:number])) for number in range(len(ROWS))}
    same = all(
        torch.equal(packed[begin:end], changed[begin:end]) for begin, end in zip(ends, ends[1:]) if begin not in starts
    )
    return float((packed - torch.cat(alone)).abs().max()), not same


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_masked_documents_are_alone(attention: str) -> None:
    """To the rounding of fp32."""
    worst, changes = differences(attention, torch.float32)
    assert worst < 1e-4 and not changes


def test_documents_of_a_kernel_are_alone() -> None:
    """What one document holds changes no bit of another's logits; alone they are the same to the rounding of bf16."""
    worst, changes = differences("flash_attention_2", torch.bfloat16)
    scale = float(model_of("flash_attention_2", torch.bfloat16)(**with_lengths(batch_of(1))).logits.abs().max())
    assert not changes and worst < 0.02 * scale


def test_a_run_with_torchs_kernels_learns_what_one_with_masks_does(
    tmp_path: Path, train_on_gpu: Callable[..., Any]
) -> None:
    """Several rows a device, ZeRO-3, evaluation; losses to the rounding of bf16."""
    support.write_rows(tmp_path / "train.jsonl", 256)
    support.write_rows(tmp_path / "validation.jsonl", 64, seed=1)
    config = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = {}
    for attention in ("sdpa", "flash_attention_2"):
        job = support.tiny_job(
            tmp_path,
            attention,
            data={"validation": str(tmp_path / "validation.jsonl")},
            deepspeed={"zero_stage": 3},
            training={"max_steps": 8, "bf16": True, "eval_strategy": "steps", "eval_steps": 8},
            checkpoint={"save_strategy": "no"},
        )
        job["task"] = {"type": "causal-lm", "packing": "best_fit", "block_size": 64}
        job["workers"] = {"num_workers": 1, "use_gpu": True, "resources_per_worker": {"CPU": 1}, "max_failures": 0}
        job["model"] |= {"config": {"model_type": "llama", **config}, "attn_implementation": attention}
        result = train_on_gpu(job)
        found[attention] = [*support.losses(Path(result.run_dir)), result.metrics["eval_loss"]]
    assert len(found["sdpa"]) == 9 and all(map(math.isfinite, found["sdpa"]))
    assert found["flash_attention_2"] == pytest.approx(found["sdpa"], rel=1e-2)
