"""A tokenizer with more tokens than the model has rows: the same new rows wherever the model is loaded, and merged
adapters on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain_nlp.config import load_job
from raytrain_nlp.modeling.load import load_trained
from raytrain_nlp.modeling.lora import apply_lora, merge_adapter
from raytrain_nlp.modeling.model import load_model
from raytrain_nlp.tasks import build_task

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of a model with 300 rows, and a tokenizer with three more tokens."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("grown")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        train_tokenizer(["ada bell"], TokenizerTraining(vocab_size=300), "decoder", "key", folder / "cache", None)
    )
    transformers.set_seed(0)
    config = transformers.AutoConfig.for_model(
        "llama", **SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>", "<|c|>"]})
    return folder / "base", tokenizer


@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"], ["lm_head"]], ids=str)
def test_merged_and_loaded_again_it_is_the_model_that_was_trained(
    base: tuple[Path, Any], tmp_path: Path, saved: list[str] | None
) -> None:
    folder, tokenizer = base
    lora = {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "init_lora_weights": False,
        **({"modules_to_save": saved} if saved else {}),
    }
    job = load_job(
        {
            "name": "run",
            "task": {"type": "causal-lm"},
            "model": {"name_or_path": str(folder)},
            "data": {"train": "x"},
            "lora": lora,
        }
    )
    task = build_task(job.task)
    torch.manual_seed(1)
    trained = apply_lora(load_model(job.model, task, [], tokenizer), job.lora, task, False).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    ids = torch.tensor([tokenizer("<|a|> ada bell <|c|>")["input_ids"]])
    truth = trained(input_ids=ids).logits
    trained.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)  # another process
    again = load_trained(tmp_path / "adapter", job.model, task, [], tokenizer).eval()
    assert torch.allclose(again(input_ids=ids).logits, truth, atol=1e-5)
    merged = merge_adapter(job.model, task, [], tokenizer, str(folder), tmp_path / "adapter").eval()
    assert merged.get_input_embeddings().num_embeddings == len(tokenizer) and torch.allclose(
        merged(input_ids=ids).logits, truth, atol=1e-5
    )
    merged.save_pretrained(tmp_path / "merged")
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(plain(input_ids=ids).logits, truth, atol=1e-5)
