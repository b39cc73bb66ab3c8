"""RMSNorms in one kernel: the same numbers, types and gradients as transformers' own classes."""

import copy
import itertools

import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.glm4.modeling_glm4 import Glm4RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.helium.modeling_helium import HeliumRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from raytrain_nlp.modeling.fused_norm import fuse_norms

FUSED = [
    LlamaRMSNorm, Qwen3RMSNorm, Glm4RMSNorm, Gemma2RMSNorm, Olmo2RMSNorm, GptOssRMSNorm, HeliumRMSNorm,
    NemotronHRMSNorm, T5LayerNorm,
]  # fmt: skip


def pair(cls, of_weight=torch.float32):
    torch.manual_seed(0)
    plain = cls(16, eps=1e-3)
    plain.weight.data.normal_(1.0, 0.3)
    plain = plain.to(of_weight)
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == 1
    return plain, fused


@pytest.mark.parametrize("cls", FUSED)
def test_numbers_and_gradients_are_those_of_the_class(cls):
    plain, fused = pair(cls)
    states = torch.randn(2, 5, 16, requires_grad=True)
    again = states.detach().clone().requires_grad_()
    weights = torch.randn(2, 5, 16)
    expected, made = plain(states), fused(again)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    (expected * weights).sum().backward()
    (made * weights).sum().backward()
    torch.testing.assert_close(again.grad, states.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", FUSED)
@pytest.mark.parametrize(
    ("of_states", "of_weight"), list(itertools.product((torch.float32, torch.bfloat16, torch.float16), repeat=2))
)
def test_types_are_those_of_the_class(cls, of_states, of_weight):
    plain, fused = pair(cls, of_weight)
    states = torch.randn(3, 16).to(of_states)
    try:
        expected = plain(states)
    except RuntimeError:
        pytest.skip("the class itself does not take these types")
    made = fused(states)
    if {of_states, of_weight} != {torch.bfloat16, torch.float16}:  # which no model mixes
        assert made.dtype == expected.dtype
    torch.testing.assert_close(made.float(), expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "module", [MambaRMSNormGated(16, 8), torch.nn.LayerNorm(16), torch.nn.LayerNorm(16, bias=False)]
)
def test_another_norm_stays_as_it_is(module):
    assert fuse_norms(module) == 0


def test_a_second_time_changes_nothing():
    _, fused = pair(LlamaRMSNorm)
    assert fuse_norms(fused) == 0


def test_a_model_has_the_loss_and_gradients_that_it_had():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    torch.manual_seed(1)
    plain = transformers.LlamaForCausalLM(config)
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == 5
    ids = torch.randint(0, 64, (2, 12))
    losses = [model(input_ids=ids, labels=ids).loss for model in (plain, fused)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    for loss in losses:
        loss.backward()
    for one, two in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_planned_memory_is_what_the_kernel_of_a_gpu_saves():
    """Input and weight, and one fp32 number a token; nothing of the operations in between."""
    with torch.device("meta"):
        norm = LlamaRMSNorm(64)
    fuse_norms(norm)
    norm = norm.to(torch.bfloat16)
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes), lambda _: None):
        made = norm(torch.empty(4, 8, 64, device="meta", dtype=torch.bfloat16, requires_grad=True))
    assert made.shape == (4, 8, 64) and made.dtype == torch.bfloat16
    assert sorted(saved) == sorted([4 * 8 * 64 * 2, 64 * 2, 4 * 8 * 4])
