"""Which models keep packed documents apart: what is answered from their source is what they do."""

from __future__ import annotations

from typing import Any

import pytest

from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.planning.models import keeps_documents_apart
from raytrain_nlp.tasks import build_task

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "olmo2": {},
    "granite": {},
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "bloom": {"n_layer": 2, "n_head": 2},
}


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_answer_is_what_the_model_does(model_type: str) -> None:
    """Logits of three documents in one row, against each alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    task = build_task(CausalLm(type="causal-lm"))
    set_seed(1)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**SMALL, **CONFIGS[model_type]})
    ).eval()
    documents = [torch.arange(3, 10), torch.arange(20, 25), torch.arange(7, 13)]
    positions = torch.cat([torch.arange(len(row)) for row in documents])
    with torch.no_grad():
        alone = torch.cat([model(input_ids=row[None]).logits[0] for row in documents])
        try:
            packed = model(
                input_ids=torch.cat(documents)[None], position_ids=positions[None], **task.forward_kwargs()
            ).logits[0]
            apart = torch.allclose(packed, alone, atol=1e-5)
        except TypeError:  # takes no positions
            apart = False
    assert keeps_documents_apart(task, model_type) <= apart, "said to keep documents apart, and does not"
    assert keeps_documents_apart(task, model_type) == (model_type not in ("bloom", "opt"))
