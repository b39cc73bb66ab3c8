"""FLOPs of a training step against torch's own count of them, and peaks of GPUs against NVIDIA's figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from raytrain_nlp.distributed.peak_flops import peak_flops
from raytrain_nlp.modeling.flops import count_flops

ROWS, LENGTH, TARGETS = 2, 96, 64
LLAMA = {
    "model_type": "llama", "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 160,
}  # fmt: skip
MODELS = {
    "llama": ("AutoModelForCausalLM", {**LLAMA, "tie_word_embeddings": False}),
    "llama, tied": ("AutoModelForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": (
        "AutoModelForCausalLM",
        {"model_type": "gpt2", "vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "bert": (
        "AutoModelForMaskedLM",
        {
            "model_type": "bert", "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 160,
        },
    ),
    "t5": (
        "AutoModelForSeq2SeqLM",
        {
            "model_type": "t5", "vocab_size": 500, "decoder_start_token_id": 0,
            "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2,
            "num_heads": 4,
        },
    ),
    "bart": (
        "AutoModelForSeq2SeqLM",
        {
            "model_type": "bart", "vocab_size": 500, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        },
    ),
}  # fmt: skip


def build(kind: str, config: dict[str, Any]) -> Any:
    values = dict(config)
    made = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return getattr(transformers, kind).from_config(made, attn_implementation="eager")


def counted(model: Any, seq2seq: bool) -> float:
    """FLOPs of a forward and a backward pass as torch counts its matrix products."""
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
    labels = torch.ones(ROWS, TARGETS, dtype=torch.long) if seq2seq else ids
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", MODELS)
def test_full_training_costs_what_torch_counts(name: str) -> None:
    kind, config = MODELS[name]
    model, seq2seq = build(kind, config), "Seq2Seq" in kind
    flops = count_flops(model)
    assert flops is not None
    formula = flops.of_step(ROWS, ROWS * LENGTH, ROWS * TARGETS if seq2seq else 0)
    assert formula == pytest.approx(counted(model, seq2seq), rel=0.06 if seq2seq else 0.02)


def test_a_frozen_base_costs_four_and_not_six() -> None:
    from peft import LoraConfig, get_peft_model

    kind, config = MODELS["llama"]
    full = count_flops(build(kind, config))
    model = get_peft_model(
        build(kind, {**config, "num_hidden_layers": 8}),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    flops = count_flops(model)
    assert flops is not None and full is not None
    assert flops.of_step(ROWS, ROWS * LENGTH) == pytest.approx(counted(model, False), rel=0.06)


def test_weights_that_are_elsewhere_count_whole_and_experts_by_those_a_token_sees() -> None:
    kind, config = MODELS["llama"]
    model, whole = build(kind, config), count_flops(build(kind, config))
    for parameter in model.parameters():  # as ZeRO-3 leaves them
        parameter.ds_numel, parameter.data = parameter.numel(), torch.empty(0)
    assert count_flops(model) == whole
    experts = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    mixed, all_of_them = build(kind, experts), build(kind, {**experts, "num_experts_per_tok": 4})
    two, four = count_flops(mixed), count_flops(all_of_them)
    assert two is not None and four is not None
    of_experts = sum(p.numel() for name, p in mixed.named_parameters() if ".experts." in name)
    assert four.source - two.source == 6 * of_experts / 2 > 0


def test_a_model_whose_config_names_no_heads_has_no_count() -> None:
    assert (
        count_flops(build("AutoModelForCausalLM", {"model_type": "mamba", "vocab_size": 99, "hidden_size": 16})) is None
    )


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA L40S", "fp16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("Tesla T4", "fp16", 65),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_peaks_are_dense(name: str, precision: str, tera: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA H200 MIG 1g.18gb", "bf16"),
        ("Tesla T4", "bf16"),
        ("Tesla V100-SXM2-16GB", "tf32"),
        ("AMD Instinct MI300X", "bf16"),
        ("CPU", "fp32"),
    ],
)
def test_an_unknown_peak_is_none(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None
