"""Memory of a step in half precision without DeepSpeed: what autocast saves, and when gradients are there."""

import contextlib

import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks

from raytrain_nlp.memory.activations import StepTrace, trace_step
from raytrain_nlp.memory.autocast import autocast_on_meta
from raytrain_nlp.memory.zero import Setting, Weights, step_memory

LLAMA = transformers.LlamaConfig(
    vocab_size=128, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, attn_implementation="eager",
)  # fmt: skip
QWEN = transformers.Qwen3Config(
    vocab_size=128, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, attn_implementation="eager",
)  # fmt: skip


def saved_bytes(model, inputs, context):
    """Bytes of the tensors that a forward saves for the backward pass, by type; weights are not among them."""
    own = {id(parameter) for parameter in model.parameters()}
    found, kept = {}, []

    def pack(tensor):
        if id(tensor) not in own and not isinstance(tensor, torch.nn.Parameter):
            key = tensor.untyped_storage()._cdata
            if all(key != other for other, _ in kept):
                kept.append((key, tensor))
                found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), context:
        model(**inputs)
    return found


@pytest.mark.parametrize(("auto", "config"), [("CausalLM", LLAMA), ("CausalLM", QWEN)])
def test_what_is_saved_is_what_torchs_autocast_saves(auto, config):
    """Of models without LayerNorm, which on a CPU autocast leaves in 16 bits."""
    cls = getattr(transformers, f"AutoModelFor{auto}")
    ids = torch.zeros(4, 32, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": ids}
    real = saved_bytes(cls.from_config(config).eval(), inputs, torch.autocast("cpu", dtype=torch.bfloat16))
    with torch.device("meta"):
        model = cls.from_config(config).eval()
    planned = saved_bytes(
        model, {name: value.to("meta") for name, value in inputs.items()}, autocast_on_meta(contextlib.nullcontext)
    )
    for dtype in (torch.float32, torch.bfloat16):
        assert planned[dtype] == pytest.approx(real[dtype], rel=0.06)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_traced_and_copies_of_weights_are_not_counted(checkpointing):
    """They are planned with the weights; with weights alone nothing is live at the end."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(LLAMA)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.zeros(2, 16, dtype=torch.long).numpy()
    inputs = {"input_ids": ids, "labels": ids}
    mixed = trace_step(model, inputs, padded=False, use_gpu=True, autocast=True)
    plain = trace_step(model, inputs, padded=False, use_gpu=True)
    half = trace_step(model.to(torch.bfloat16), inputs, padded=False, use_gpu=True)
    assert half.peak < mixed.peak < 1.3 * plain.peak
    assert mixed.points[-1][0] == sum(parameter.numel() for parameter in model.parameters())


SMALL = {
    "vocab_size": 128, "hidden_size": 32, "d_model": 32, "num_hidden_layers": 2, "n_layer": 2, "num_attention_heads": 4,
    "n_head": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "d_inner": 64,
    "num_local_experts": 4, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        ("CausalLM", "bloom"), ("CausalLM", "falcon"), ("CausalLM", "mixtral"), ("CausalLM", "gpt_oss"),
        ("CausalLM", "gpt2"), ("SequenceClassification", "funnel"), ("SequenceClassification", "bert"),
    ],
)  # fmt: skip
def test_methods_operators_einsum_and_experts_are_cast_too(auto, kind):
    """Each takes part in a product in a way of its own; half precision throughout is the least that is saved."""
    config = transformers.CONFIG_MAPPING[kind]
    values = {name: value for name, value in SMALL.items() if name in config().to_dict()}
    with torch.device("meta"):
        model = getattr(transformers, f"AutoModelFor{auto}").from_config(config(**values))
    ids = torch.zeros(2, 16, dtype=torch.long).numpy()
    inputs = {"input_ids": ids, "labels": ids if auto == "CausalLM" else ids[:, 0]}
    mixed = trace_step(model, inputs, padded=False, use_gpu=True, autocast=True)
    half = trace_step(model.to(torch.bfloat16), inputs, padded=False, use_gpu=True)
    assert half.peak < mixed.peak < 2.5 * half.peak
    assert "baddbmm" not in vars(torch.Tensor)  # a class has what it inherited again


def test_gradients_of_one_gpu_come_as_activations_go():
    """Without DDP none is there while the forward runs; with it, or from a micro-batch before, all are."""
    weights, trace = Weights(total=100, trainable=100), StepTrace(((0, 1_000, 0), (60, 700, 0), (100, 0, 0)), 0)
    alone = Setting(zero_stage=0, num_workers=1, use_gpu=True)
    parts = step_memory(weights, alone, trace)
    assert (parts["activations"], parts["gradients"], parts["buffers"]) == (1_000, 0, 0)
    for setting in (
        Setting(zero_stage=0, num_workers=2, use_gpu=True),
        Setting(zero_stage=0, num_workers=1, use_gpu=True, accumulation=2),
    ):
        parts = step_memory(weights, setting, trace)
        assert (parts["activations"], parts["gradients"], parts["buffers"]) == (1_000, 400, 0)
    late = StepTrace(((0, 500, 0), (60, 400, 0), (100, 300, 0)), 0)
    parts = step_memory(weights, alone, late)
    assert (parts["activations"], parts["gradients"]) == (300, 400)


def test_autocast_is_that_of_ddp_alone():
    for stage, mixed, weight_bytes, expected in (
        (0, True, 4, True),
        (0, False, 4, False),
        (3, True, 4, False),
        (0, True, 2, False),
    ):
        setting = Setting(zero_stage=stage, num_workers=1, use_gpu=True, mixed=mixed, weight_bytes=weight_bytes)
        assert setting.autocasts is expected
