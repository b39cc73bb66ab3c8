"""Which models keep packed documents apart: what a small model of a family tells is what larger ones do, for each
attention and for what else their configs say.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from raytrain_nlp.modeling.packing_trial import keeps_documents_apart

SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 5000,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
GPT_NEO = {"num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4}
CASES: dict[tuple[str, str], tuple[dict[str, Any], bool]] = {
    ("llama", "eager"): ({}, True),
    ("llama", "sdpa"): ({}, True),
    ("qwen2", "sdpa"): ({"num_key_value_heads": 2}, True),
    ("mistral", "sdpa"): ({"num_key_value_heads": 2, "sliding_window": 3}, True),
    ("gemma2", "eager"): ({"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 3}, True),
    ("gpt_neox", "sdpa"): ({}, True),
    ("phi3", "sdpa"): ({"pad_token_id": 0, "num_key_value_heads": 6}, True),
    ("gpt2", "sdpa"): ({"n_embd": 96, "n_layer": 2, "n_head": 6}, True),
    ("gpt_neo", "eager"): (GPT_NEO, True),
    ("mixtral", "sdpa"): ({"num_key_value_heads": 2, "num_local_experts": 3}, True),
    # masks that are not given the positions
    ("gpt_oss", "eager"): ({"num_key_value_heads": 2, "num_local_experts": 8, "head_dim": 16}, False),
    ("opt", "sdpa"): ({"ffn_dim": 128, "word_embed_proj_dim": 96}, False),
    # a bias by distance; falcon's is a choice of its config
    ("bloom", "eager"): ({"n_layer": 2, "n_head": 6}, False),
    ("falcon", "eager"): ({"alibi": True}, False),
    # state that goes from token to token: in all layers, in some
    ("mamba", "eager"): ({"state_size": 4}, False),
    ("jamba", "sdpa"): ({"num_key_value_heads": 2, "num_experts": 2, "attn_layer_offset": 1}, False),
}


@pytest.mark.parametrize(("model_type", "attention"), sorted(CASES))
def test_answer_is_what_the_model_does(model_type: str, attention: str) -> None:
    """Logits of three documents in one row, against each alone, by a model of other sizes than those that are tried."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    torch.set_num_threads(1)
    values, expected = CASES[model_type, attention]
    config = AutoConfig.for_model(model_type, **{**SIZES, **values})
    set_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    documents = [torch.arange(3, 10), torch.arange(20, 25), torch.arange(7, 13)]
    positions = torch.cat([torch.arange(len(row)) for row in documents])
    apart = False
    with torch.no_grad(), contextlib.suppress(TypeError):  # raised by those that take no positions
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in documents])
        packed = model(input_ids=torch.cat(documents)[None], position_ids=positions[None], use_cache=False).logits[0]
        apart = torch.allclose(packed, alone, atol=1e-5)
    assert keeps_documents_apart(config, AutoModelForCausalLM, attention) is apart is expected
