"""A job whose packed documents would see each other is refused before anything starts; the memory of the mask between
them is planned.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, modeling_flash_attention_utils

from raytrain_nlp.compat.transformers import apply_flash
from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.errors import InputError
from raytrain_nlp.memory.activations import trace_step
from raytrain_nlp.memory.widest_batch import widest_shape
from raytrain_nlp.modeling.packing_trial import keeps_documents_apart
from raytrain_nlp.modeling.small_config import narrow_config
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.planning.models import check_attention
from raytrain_nlp.tasks.base import Packing


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizers")
    return load_tokenizer(
        str(train_tokenizer(["ada bell"], TokenizerTraining(vocab_size=300), "decoder", "k", folder, None))
    )


def job_of(
    model_type: str, packing: str = "best_fit", attention: str | None = None, bf16: bool = True, **config: Any
) -> Any:
    job = load_job(
        {
            "name": "run",
            "task": {"type": "causal-lm", "packing": packing},
            "model": {"config": {"model_type": model_type, **config}, "tokenizer": "train"},
            "data": {"train": "train.jsonl"},
            "training": {"bf16": bf16},
            "workers": {"num_workers": 1, "use_gpu": False},
        }
    )
    # as of a machine that has the GPU and the package for it
    model = job.model.model_copy(update={"attn_implementation": attention})
    return job.model_copy(update={"model": model})


@pytest.mark.parametrize(
    ("model_type", "attention", "config"),
    [
        ("llama", None, {}),
        ("llama", "flash_attention_2", {}),
        ("mistral", "kernels-community/flash-attn2", {}),
        ("gpt_oss", "flash_attention_3", {}),
        ("falcon_h1", None, {"packing": "concat"}),
        ("bloom", None, {"packing": "none"}),
    ],
)
def test_what_keeps_documents_apart_is_taken(
    model_type: str, attention: str | None, config: dict[str, Any], tokenizer: Any
) -> None:
    check_attention(job_of(model_type, attention=attention, **config), tokenizer)


@pytest.mark.parametrize(
    ("model_type", "attention", "config", "line"),
    [
        ("bloom", None, {}, "models of type 'bloom' cannot keep packed documents apart. Use packing: concat or none, "),
        # its masks are not given the positions; the kernels of flash attention are
        ("gpt_oss", None, {}, "models of type 'gpt_oss' cannot keep packed documents apart. "),
        ("falcon", "eager", {"alibi": True}, "models of type 'falcon' cannot keep packed documents apart (eager). "),
        ("mamba", None, {}, "models of type 'mamba' cannot keep packed documents apart. "),
        # passes no lengths on to the kernel
        (
            "stablelm",
            "flash_attention_2",
            {},
            "models of type 'stablelm' cannot keep packed documents apart (flash_attention_2)."
            " Use packing: concat or none, or another model or attention.",
        ),
        # made by code that is not here, without a mask
        ("llama", "my_kernel", {}, "a small model could not be made to find out whether models of type 'llama' keep "),
    ],
)
def test_what_does_not_is_refused(
    model_type: str, attention: str | None, config: dict[str, Any], line: str, tokenizer: Any
) -> None:
    with pytest.raises(InputError) as caught:
        check_attention(job_of(model_type, attention=attention, **config), tokenizer)
    assert f"task.packing: {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "config", "lacks"),
    [
        ("llama", {}, None),
        (
            "llama",
            {"attention_dropout": 0.1},
            "torch's own kernels cannot take its place (torch's kernels have no dropout",
        ),
        (
            "gemma2",
            {"attn_logit_softcapping": 30.0},
            "cannot take its place (This flash attention implementation does ",
        ),
        (
            "bloom",
            {},
            "cannot take its place (BloomForCausalLM has no flash attention). pip install flash-attn, or use",
        ),
    ],
)
def test_what_torchs_kernels_lack_is_refused(
    model_type: str, config: dict[str, Any], lacks: str | None, tokenizer: Any
) -> None:
    job = job_of(model_type, "none", "flash_attention_2", **config)
    if lacks is None:
        check_attention(job, tokenizer)
        return
    with pytest.raises(InputError) as caught:
        check_attention(job, tokenizer)
    assert lacks in str(caught.value) and "\n" not in str(caught.value)


def test_flash_attention_of_fp32_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="computes in half precision only, and the job trains in fp32"):
        check_attention(job_of("llama", "none", "flash_attention_2", bf16=False), tokenizer)


def test_a_small_model_has_a_layer_of_each_kind_and_all_that_is_no_size() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"] * 3
    config = AutoConfig.for_model("qwen2", num_hidden_layers=8, layer_types=kinds, use_sliding_window=True)
    small = narrow_config(config)
    assert small.layer_types == kinds[:6] and small.num_hidden_layers == 6 and small.use_sliding_window
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads) == (64, 4, 4)
    assert (config.hidden_size, config.num_hidden_layers) == (4096, 8)


def test_a_trial_leaves_the_process_as_it_was() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    assert keeps_documents_apart(LlamaConfig(), AutoModelForCausalLM, "flash_attention_2")
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]
    with pytest.raises(ImportError):  # flash attention needs its package again
        AutoModelForCausalLM.from_config(narrow_config(LlamaConfig()), attn_implementation="flash_attention_2")


def test_only_the_attention_that_torch_has_kernels_of_is_replaced_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    patch = type(mock.patch.object(torch, "nn"))
    monkeypatch.setattr(patch, "start", lambda self: started.append(self.__enter__()))
    kernels = lambda *_, **__: None, lambda *_, **__: None
    find, adjust = mock.Mock(return_value="another's"), PreTrainedModel._check_and_adjust_attn_implementation
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", find)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", adjust)
    apply_flash(*kernels)
    apply_flash(*kernels)
    assert len(started) == 2, "once a process"
    found = modeling_flash_attention_utils.lazy_import_flash_attention
    assert found("flash_attention_2")[0][:2] == kernels and found("flash_attention_3") == "another's"
    small = narrow_config(LlamaConfig())
    assert (
        AutoModelForCausalLM.from_config(small, attn_implementation="flash_attention_2").config._attn_implementation
        == "flash_attention_2"
    )
    with pytest.raises(ImportError):
        AutoModelForCausalLM.from_config(small, attn_implementation="flash_attention_3")


@pytest.mark.parametrize(
    ("kind", "attention", "masked"),
    [
        ("best_fit", None, True),
        ("best_fit", "eager", True),
        ("best_fit", "flash_attention_2", False),
        ("best_fit", "flex_attention", False),
        ("concat", None, False),
    ],
)
def test_the_mask_between_documents_is_planned(kind: str, attention: str | None, masked: bool) -> None:
    rows, length = 4, 256
    positions = np.tile(np.arange(length // 2), (rows, 2))
    tensors = {"input_ids": np.zeros((rows, length), dtype=np.int64), "position_ids": positions}
    split: Any = SimpleNamespace(
        plan=SimpleNamespace(
            lengths=np.full(rows, length), spec=SimpleNamespace(num_rows=rows, batch_tokens=None, seed=0)
        ),
        task=SimpleNamespace(collate=lambda *_: tensors, forward_kwargs=lambda: {"use_cache": False}),
        fetch=lambda _: {},
        spec=SimpleNamespace(packing=Packing(kind, length), context=None),
    )
    shape = widest_shape(split, job_of("llama", attention=attention), rows)
    assert shape.padded is masked
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes))
    peaks = [
        trace_step(model, shape.tensors, padded=padded, use_gpu=True, train=False).peak
        for padded in (shape.padded, False)
    ]
    assert (peaks[0] - peaks[1] >= rows * length * length) is masked  # one byte of a pair of tokens
