"""Time and memory of a training step on packed documents, by attention: masks of eager and SDPA, flex attention's
blocks, and a kernel that takes the documents' lengths.

    python tests/benchmarks/packed_attention.py
    python tests/benchmarks/packed_attention.py --attention sdpa flash_attention_2 --length 8192 --json packed.json

On a GPU: 4 layers of the shape of a Llama of 1.2 billion parameters in bf16, 4 rows of 2,048 tokens, documents of about
300; flash attention by its package, or by torch's own kernels. On a CPU: a small one in fp32, eager and SDPA. The
median of `--repeat` forward and backward passes; "one document" is the same row without borders, which needs no mask.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raytrain_nlp.compat.transformers import apply_flash
from raytrain_nlp.config.hardware import uses_torch_flash
from raytrain_nlp.modeling import flash_kernels
from raytrain_nlp.modeling.document_lengths import apply_lengths, with_lengths

GPU = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4}
CPU = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def main() -> None:
    use_gpu = torch.cuda.is_available()
    everything = ["sdpa", "flash_attention_2", "flex_attention", "eager"] if use_gpu else ["sdpa", "eager"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", default=everything)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048 if use_gpu else 256)
    parser.add_argument("--document", type=int, default=300 if use_gpu else 40, help="mean tokens of a document")
    parser.add_argument("--repeat", type=int, default=10 if use_gpu else 3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name() if use_gpu else 'CPU'}, torch {torch.__version__}, {args.rows} rows of "
          f"{args.length} tokens, documents of about {args.document}")  # fmt: skip
    found = []
    for attention in args.attention:
        for name in ("documents", "one document"):
            row = {"attention": attention, "row": name, **measure(attention, name == "documents", args, use_gpu)}
            found.append(row)
            print(f"{attention:<18} {name:<13} {row['ms']:9.2f} ms   peak {row['peak_mb']:9.1f} MB   "
                  f"loss {row['loss']:.4f}", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(attention: str, packed: bool, args: argparse.Namespace, use_gpu: bool) -> dict[str, float]:
    """Median milliseconds of a forward and backward, and peak MB beside the weights (of a GPU)."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if uses_torch_flash(attention):
        apply_flash(flash_kernels.torch_attend, flash_kernels.torch_attend_documents)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000 if use_gpu else 500, num_hidden_layers=4, **(GPU if use_gpu else CPU))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    device, dtype = ("cuda", torch.bfloat16) if use_gpu else ("cpu", torch.float32)
    model = model.to(device, dtype).train()
    batch = batch_of(args, config.vocab_size, packed)
    batch = with_lengths(batch) if apply_lengths(model) else batch
    batch = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    loss, times = step(), []
    step()
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if use_gpu else 0
    for _ in range(args.repeat):
        started = time.perf_counter()
        step()  # which reads the loss: all is done
        times.append((time.perf_counter() - started) * 1000)
    peak = torch.cuda.max_memory_allocated() - before if use_gpu else 0
    return {"ms": statistics.median(times), "peak_mb": peak / 1e6, "loss": loss}


def batch_of(args: argparse.Namespace, vocabulary: int, packed: bool) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (args.rows, args.length), generator=random)
    positions = torch.arange(args.length).repeat(args.rows, 1)
    if packed:
        begins = torch.rand((args.rows, args.length), generator=random) < 1 / args.document
        begins[:, 0] = True
        positions = positions - torch.where(begins, positions, 0).cummax(dim=1).values
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}


if __name__ == "__main__":
    main()
