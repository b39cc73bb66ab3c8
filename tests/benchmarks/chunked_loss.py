"""Peak memory and time of a language model's loss, forward and backward, with all logits and in chunks of tokens.

    python -m tests.benchmarks.chunked_loss
    python tests/benchmarks/chunked_loss.py --tokens 2048 --hidden 512 --vocabulary 30522 --json chunked_loss.json

On a GPU: the head of a Llama of 1.2 billion parameters (hidden 2,048, vocabulary 50,257) and 8,192 tokens in bf16,
memory by `torch.cuda.max_memory_allocated`. On a CPU: fp32, a smaller one, memory by torch's profiler. The median of
`--repeat` runs; memory is what is allocated besides hidden states and head, gradients included. Then the same with 15 %
of the tokens predicted, as in masked language models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raytrain_nlp.modeling.chunked_loss import chunked_cross_entropy, plain_cross_entropy

GPU, CPU = {"tokens": 8192, "hidden": 2048, "vocabulary": 50257}, {"tokens": 1024, "hidden": 256, "vocabulary": 16000}


def main() -> None:
    use_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (GPU if use_gpu else CPU).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--chunk", type=int, nargs="*", default=[], help="tokens of a chunk; default: the package's own"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, dtype = ("cuda", torch.bfloat16) if use_gpu else ("cpu", torch.float32)
    print(f"{torch.cuda.get_device_name() if use_gpu else 'CPU'}, {dtype}, {args.tokens} tokens, hidden {args.hidden}, "
          f"vocabulary {args.vocabulary}")  # fmt: skip
    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, device=device, dtype=dtype).requires_grad_()
    weight = (torch.randn(args.vocabulary, args.hidden, device=device, dtype=dtype) * 0.02).requires_grad_()
    targets = torch.randint(0, args.vocabulary, (args.tokens,), device=device)
    few = targets.masked_fill(torch.rand(args.tokens, device=device) >= 0.15, -100)
    found = []
    for share, labels in (("all", targets), ("15 %", few)):
        most = int((labels != -100).sum()) + 8
        losses: dict[str, Callable[[], torch.Tensor]] = {
            "plain": lambda labels=labels: plain_cross_entropy(hidden, weight, None, labels)
        }
        for chunk in [None, *args.chunk]:
            losses[f"chunks{f' of {chunk}' if chunk else ''}"] = lambda labels=labels, most=most, chunk=chunk: (
                chunked_cross_entropy(hidden, weight, None, labels, most=most, chunk=chunk)
            )
        truth = None
        for name, loss in losses.items():
            row = {"tokens predicted": share, "loss by": name, **measure(loss, hidden, weight, use_gpu, args.repeat)}
            gradient, value = weight.grad.float(), row["loss"]
            truth = truth or (value, gradient)
            row["loss differs by"] = abs(value - truth[0])
            row["gradient differs by"] = ((gradient - truth[1]).norm() / truth[1].norm()).item()
            found.append(row)
            off = row["gradient differs by"]
            print(f"{share:>5} {name:<16} {row['ms']:9.2f} ms   peak {row['peak_mb']:9.1f} MB   loss {value:.6f} "
                  f"({row['loss differs by']:.1e} off), head's gradient {off:.1e} off")  # fmt: skip
        truth = None
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(
    loss: Callable[[], torch.Tensor], hidden: torch.Tensor, weight: torch.Tensor, use_gpu: bool, repeat: int
) -> dict[str, Any]:
    """Median milliseconds and peak MB of a forward and backward."""

    def step() -> torch.Tensor:
        hidden.grad = weight.grad = None
        value = loss()
        value.backward()
        return value.detach()

    value, times = step(), []
    for _ in range(repeat):
        synchronize(use_gpu)
        start = time.perf_counter()
        step()
        synchronize(use_gpu)
        times.append((time.perf_counter() - start) * 1000)
    peak = peak_of(step, use_gpu, hidden, weight)
    return {"ms": statistics.median(times), "peak_mb": peak / 1e6, "loss": value.item()}


def synchronize(use_gpu: bool) -> None:
    if use_gpu:
        torch.cuda.synchronize()


def peak_of(step: Callable[[], Any], use_gpu: bool, *parts: torch.Tensor) -> int:
    """Most bytes allocated at once, besides what was before."""
    for part in parts:
        part.grad = None
    if use_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


if __name__ == "__main__":
    main()
