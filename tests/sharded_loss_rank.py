"""A rank of `sharded_loss.py`: the same steps under ZeRO-3 with and without logits, as one JSON line.

python sharded_loss_rank.py RANK WORLD_SIZE PORT FAMILY...
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

STEPS, VOCABULARY = 3, 503
SIZES = {
    "llama": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "bert": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    },
}  # fmt: skip


def main(rank: int, world_size: int, port: str, families: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    import torch

    from raytrain_nlp.compat.deepspeed import import_deepspeed

    deepspeed = import_deepspeed()
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", verbose=False)
    found = {
        family: {name: train(rank, family, name == "chunked", deepspeed) for name in ("plain", "chunked")}
        for family in families
    }
    print("FOUND " + json.dumps(found))


def train(rank: int, family: str, chunked: bool, deepspeed: Any) -> dict[str, Any]:
    """Losses of this rank, sums and norms of all weights at the end, and how many losses were computed in chunks:
    rank 0's batches are below the size from which chunks are used, those of the others above.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    from raytrain_nlp.modeling.lazy_logits import LazyHead

    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, pad_token_id=0, **SIZES[family])
    torch.manual_seed(0)
    zero = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    model = auto.from_config(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = deepspeed.initialize(model=model, config=zero, optimizer=optimizer)[0]
    head = LazyHead(model, worth_it=16 * VOCABULARY)
    draw, losses = torch.Generator().manual_seed(rank), []
    for _ in range(STEPS):
        ids = torch.randint(1, VOCABULARY, (2, 7 if rank == 0 else 20), generator=draw)
        labels = ids.masked_fill(torch.rand(ids.shape, generator=draw) < 0.5, -100)
        most = int((labels != -100).sum()) + len(labels)
        with head.active(most) if chunked else contextlib.nullcontext():
            loss = engine(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids)).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        weights = {name: parameter.double().sum().item() for name, parameter in model.named_parameters()}
        norms = {name: parameter.double().norm().item() for name, parameter in model.named_parameters()}
    engine.destroy()
    return {"losses": losses, "sums": weights, "norms": norms, "chunked": head.losses}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
