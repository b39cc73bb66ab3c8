"""The loss of language models without logits: it and all gradients equal those of the model's own forward, by family
and task; nothing is read back from the device; what else reads logits gets them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_config import job
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.trainer_pt_utils import LabelSmoother

from raytrain_nlp.config import load_job
from raytrain_nlp.memory.activations import trace_step
from raytrain_nlp.memory.widest_batch import checkpoint_activations
from raytrain_nlp.modeling.chunked_loss import chunked_cross_entropy, chunked_token_losses, plain_cross_entropy
from raytrain_nlp.modeling.lazy_logits import LazyHead, LazyLogits, find_plain_head
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Place
from raytrain_nlp.tasks.preference.log_probabilities import score_completions

VOCABULARY = 211
DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
ENCODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 66,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (AutoModelForCausalLM, DECODER),
    "qwen2": (AutoModelForCausalLM, DECODER),
    "gemma": (AutoModelForCausalLM, DECODER),
    "mixtral": (AutoModelForCausalLM, {**DECODER, "num_local_experts": 4, "output_router_logits": True}),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}),
    "gptj": (AutoModelForCausalLM, {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "xlnet": (AutoModelForCausalLM, {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48}),
    "gemma2": (AutoModelForCausalLM, DECODER),
    "granite": (AutoModelForCausalLM, {**DECODER, "logits_scaling": 3.0}),
    "cohere": (AutoModelForCausalLM, {**DECODER, "logit_scale": 0.5, "eos_token_id": 2}),
    "bert": (AutoModelForMaskedLM, ENCODER),
    "roberta": (AutoModelForMaskedLM, ENCODER),
    "deberta-v2": (AutoModelForMaskedLM, ENCODER),
    "distilbert": (AutoModelForMaskedLM, {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}),
    "t5": (AutoModelForSeq2SeqLM, {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}),  # noqa: E501
    "bart": (AutoModelForSeq2SeqLM, BART),
}  # fmt: skip
WITH_LOGITS = {"gemma2", "granite", "cohere", "bart"}
"""Families with a soft cap, a scale or a bias between the head and the loss."""


def build(family: str, **values: Any) -> Any:
    """A tiny model of a family, without dropout."""
    auto, sizes = FAMILIES[family]
    special = {"pad_token_id": 0, "bos_token_id": 1} | ({} if "eos_token_id" in sizes else {"eos_token_id": 2})
    config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, **special, **sizes, **values})
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = auto.from_config(config).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases that are zero at the start would hide one that is left out
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch_of(masked: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :6] = labels[0, 15:] = -100
    if masked:
        labels[:, ::3] = labels[:, 1::3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def most_of(labels: torch.Tensor) -> int:
    """As the trainer knows it."""
    return int((labels != -100).sum()) + len(labels)


def step_of(model: Any, batch: dict[str, torch.Tensor], around: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and all gradients by name."""
    model.zero_grad()
    if around is None:
        loss = model(**batch).loss
    else:
        with around:
            loss = model(**batch).loss
    loss.backward()
    return loss.item(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def check_alike(found: tuple[float, Any], truth: tuple[float, Any]) -> None:
    """Loss to 1e-5; each gradient to 1e-5 of its norm, or of the smallest that rounding leaves of one that is zero."""
    assert found[0] == pytest.approx(truth[0], abs=1e-5)
    assert found[1].keys() == truth[1].keys()
    for name, gradient in truth[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


# Families, tasks


@pytest.mark.parametrize("family", FAMILIES)
def test_families_train_as_with_logits(family: str) -> None:
    """As on a CPU and as on a GPU (whose head is padded), with all tokens and with those that are predicted."""
    model, masked = build(family), FAMILIES[family][0] is AutoModelForMaskedLM
    batch = batch_of(masked)
    truth = step_of(model, batch)
    names = [name for name, _ in model.named_modules()]
    for on_gpu in (False, True):
        for most in (None, most_of(batch["labels"])):
            head = LazyHead(model, on_gpu, worth_it=0)
            check_alike(step_of(model, batch, head.active(most)), truth)
            assert head.losses == (family not in WITH_LOGITS)
    assert [name for name, _ in model.named_modules()] == names and find_plain_head(model) is not None


CONTEXT = CollateContext(
    pad_token_id=0, pad_token_type_id=0, padding_side="right", model_inputs=["input_ids"], labels=[], mask_token_id=4,
    vocab_size=VOCABULARY,
)  # fmt: skip


def collated(kind: str) -> dict[str, torch.Tensor]:
    """A batch of rows of 12, 20 and 16 tokens (blocks: of 16) by the task's own `collate`."""
    draw = np.random.default_rng(3)
    lengths = (16, 16, 16) if kind == "blocks" else (12, 20, 16)
    columns: dict[str, list[Any]] = {"input_ids": [draw.integers(5, VOCABULARY, size) for size in lengths]}
    section: dict[str, Any] = {"type": "masked-lm" if kind == "masked" else "causal-lm"}
    if kind == "completions":
        section |= {"prompt_column": "prompt", "completion_column": "completion"}
        columns["targets"] = [np.arange(size) >= size // 2 for size in lengths]
    if kind == "chat":
        section |= {"messages_column": "messages"}
        columns["targets"] = [np.arange(size) % 8 >= 5 for size in lengths]
    if kind == "masked":
        columns["words"] = [np.ones(size, np.int64) for size in lengths]
    task = build_task(load_job(job(task=section)).task)
    made = task.collate(columns, CONTEXT, Place(0, 0, np.arange(3)))
    return {name: torch.from_numpy(array).long() for name, array in made.items()}


@pytest.mark.parametrize("kind", ["blocks", "completions", "chat", "masked"])
def test_tasks_train_as_with_logits(kind: str) -> None:
    model, batch = build("bert" if kind == "masked" else "llama"), collated(kind)
    head = LazyHead(model, worth_it=0)
    check_alike(step_of(model, batch, head.active(most_of(batch["labels"]))), step_of(model, batch))
    assert head.losses == 1


def test_of_an_adapter_only_the_adapter_gets_gradients() -> None:
    peft = pytest.importorskip("peft")
    lora = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"], **lora))
    head = LazyHead(model, worth_it=0)
    check_alike(step_of(model, batch_of(), head.active()), step_of(model, batch_of()))
    assert head.losses == 1
    for values in ({"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}):
        assert find_plain_head(peft.get_peft_model(build("llama"), peft.LoraConfig(**values, **lora))) is None


def test_recomputed_layers_and_counted_items() -> None:
    """Gradient checkpointing below the head; a sum divided by a number of tokens."""
    model = build("llama")
    batch = {**batch_of(), "num_items_in_batch": torch.tensor(7.0), "use_cache": False}
    with checkpoint_activations(model, True):
        check_alike(step_of(model, batch, LazyHead(model, worth_it=0).active()), step_of(model, batch))


# What reads logits


def test_smaller_losses_are_those_of_the_model_alone() -> None:
    model, batch = build("gpt2"), batch_of()
    head = LazyHead(model)
    found, truth = step_of(model, batch, head.active()), step_of(model, batch)
    assert found[0] == truth[0] and head.losses == 0


READERS: dict[str, Callable[[Any], torch.Tensor]] = {
    "smoothing": lambda outputs: LabelSmoother(0.1)(outputs, batch_of()["labels"], shift_labels=True),
    "a mask": lambda outputs: outputs.logits[batch_of()["labels"] > 100].sum(),
    "a column": lambda outputs: outputs.logits[:, -1, 7].tanh(),
    "a slice of the vocabulary": lambda outputs: outputs.logits[..., :9].sum(),
    "operators": lambda outputs: (2 * outputs.logits / 3 - outputs.logits).exp(),
    "in place": lambda outputs: outputs.logits.div_(2).add(outputs.logits),
    "functions": lambda outputs: torch.stack([outputs.logits, outputs.logits]).softmax(-1),
    "weights of classes": lambda outputs: F.cross_entropy(
        outputs.logits.view(-1, VOCABULARY), batch_of()["input_ids"].view(-1), weight=torch.arange(float(VOCABULARY))
    ),
    "each token's loss": lambda outputs: F.cross_entropy(
        outputs.logits.transpose(1, 2), batch_of()["input_ids"], reduction="none"
    ),
    "another ignored label": lambda outputs: F.cross_entropy(
        outputs.logits.reshape(-1, VOCABULARY), batch_of()["input_ids"].view(-1), ignore_index=7
    ),
    "a smaller type": lambda outputs: outputs.logits.float().to(torch.bfloat16),
    "shape and type": lambda outputs: torch.tensor([*outputs.logits.shape, outputs.logits.dtype.itemsize]),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_else_reads_logits_gets_them(reader: str) -> None:
    """Label smoothing as transformers computes it, and what a user's code may do."""
    model, inputs = build("llama"), {key: value for key, value in batch_of().items() if key != "labels"}
    head = LazyHead(model, worth_it=0)
    with head.active():
        lazy = model(**inputs)
    assert isinstance(lazy.logits, LazyLogits)
    found, truth = READERS[reader](lazy), READERS[reader](model(**inputs))
    assert type(found) is torch.Tensor and found.dtype == truth.dtype and head.losses == 0
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sections", "chunks"),
    [
        ({}, True), ({"model": {"config": {"model_type": "bert"}, "tokenizer": "train", "chunked_loss": False}}, False),
        ({"training": {"label_smoothing_factor": 0.1}}, False), ({"training": {"torch_compile": True}}, False),
        ({"trainer": {"compute_loss_func": "mine.py:loss"}}, False),
    ],
)  # fmt: skip
def test_which_jobs_have_it(sections: dict[str, Any], chunks: bool) -> None:
    assert load_job(job(**sections)).chunks_loss is chunks


# The sum and its gradients


def tensors(dtype: torch.dtype = torch.float32, biased: bool = True) -> list[Any]:
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(90, 24, generator=draw).to(dtype)
    weight = torch.randn(VOCABULARY, 24, generator=draw).to(dtype)
    bias = torch.randn(VOCABULARY, generator=draw).to(dtype) if biased else None
    targets = torch.randint(0, VOCABULARY, (90,), generator=draw)
    targets[torch.rand(90, generator=draw) < 0.5] = -100
    return [*(part if part is None else part.requires_grad_() for part in (hidden, weight, bias)), targets]


def gradients(loss: torch.Tensor, parts: list[Any]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [part for part in parts[:3] if part is not None]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_half_precision_is_as_near_as_plain(dtype: torch.dtype, on_gpu: bool) -> None:
    """To the loss in fp64; with a loss that a scaler has multiplied by 65,536 as well."""
    parts, scale = tensors(dtype), 65536.0 if dtype is torch.float16 else 1.0
    exact = [None if part is None else part.detach().double().requires_grad_() for part in parts[:3]] + parts[3:]
    truth = gradients(plain_cross_entropy(*exact) * scale, exact)
    plain = gradients(plain_cross_entropy(*parts) * scale, parts)
    loss = chunked_cross_entropy(*parts, chunk=32, most=60, on_gpu=on_gpu)
    found = gradients(loss * scale, parts)
    for mine, theirs, right in zip(found, plain, truth, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.double() - right).norm() <= 1.1 * (theirs.double() - right).norm() + 1e-3 * right.norm()


@pytest.mark.parametrize("biased", [False, True])
def test_under_autocast(biased: bool) -> None:
    """fp32 weights, products in bf16: gradients have the types of what they belong to."""
    parts = tensors(biased=biased)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = plain_cross_entropy(*parts), chunked_cross_entropy(*parts, chunk=32)
    assert found.item() == pytest.approx(plain.item(), rel=1e-3)
    for mine, theirs in zip(gradients(found, parts), gradients(plain, parts), strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_sums_and_means_of_few_and_no_tokens() -> None:
    hidden, weight, bias, targets = tensors()
    logits = F.linear(hidden, weight, bias)
    total = chunked_cross_entropy(hidden, weight, bias, targets, reduction="sum", chunk=7)
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, reduction="sum"))
    assert chunked_cross_entropy(hidden, weight, bias, torch.full_like(targets, -100)).isnan()  # as F.cross_entropy
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_cross_entropy(hidden, weight, bias, targets), F.cross_entropy(logits, targets)
        )
    predicted = int((targets != -100).sum())
    assert chunked_cross_entropy(hidden, weight, bias, targets, most=predicted).isfinite()
    assert chunked_cross_entropy(hidden, weight, bias, targets, most=predicted - 1).isnan()


@pytest.mark.parametrize("biased", [False, True])
def test_losses_of_single_tokens(biased: bool) -> None:
    """Each with its own factor, which is known behind the loss only: as of preferences, where rows are weighed."""
    draw = torch.Generator().manual_seed(4)
    hidden = torch.randn(37, 8, generator=draw, requires_grad=True)
    weight = torch.randn(19, 8, generator=draw, requires_grad=True)
    bias = torch.randn(19, generator=draw, requires_grad=True) if biased else None
    targets = torch.randint(0, 19, (37,), generator=draw)
    targets[::5] = -100
    factors, inputs = torch.randn(37, generator=draw), [hidden, weight, *([bias] if bias is not None else [])]
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    expected = torch.autograd.grad(plain @ factors, inputs)
    found = chunked_token_losses(hidden, weight, bias, targets, chunk=8)
    torch.testing.assert_close(found, plain)
    for one, other in zip(torch.autograd.grad(found @ factors, inputs), expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(chunked_token_losses(hidden, weight, bias, targets, chunk=8), plain)


def test_pairs_are_scored_without_logits() -> None:
    """Log-probabilities of completions, and the gradients of a loss of them."""
    ids = torch.randint(5, VOCABULARY, (3, 2, 12), generator=torch.Generator().manual_seed(1))
    learned = (torch.arange(12) > 4).long().expand(3, 2, 12)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": learned}
    gradients = []
    for chunks in (False, True):
        model, found = build("llama"), None
        head = LazyHead(model, worth_it=0)
        with head.active() if chunks else contextlib.nullcontext():
            found = score_completions(model, inputs, slice(0, 2))
        (found[:, 0] * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        gradients.append([found.detach(), *[parameter.grad for parameter in model.parameters()]])
        assert head.losses == chunks
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_its_backward_runs_once() -> None:
    parts = tensors()
    loss = chunked_cross_entropy(*parts)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


class Operations(TorchDispatchMode):
    """Collects the names of operations, and the most elements of a result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.add(str(function).removeprefix("aten.").split(".")[0])
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("most", [None, 60])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_nothing_is_read_and_no_logits_exist(most: int | None, on_gpu: bool) -> None:
    parts = tensors()
    with Operations() as seen:
        chunked_cross_entropy(*parts, most=most, on_gpu=on_gpu, chunk=16).backward()
    assert not seen.names & {
        "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"
    }  # fmt: skip
    assert seen.largest <= max(16 * 256, 256 * 24) < 90 * VOCABULARY


def test_a_traced_step_has_no_logits() -> None:
    """Of a vocabulary that is far larger than the model: what a step keeps alive is planned without logits, and less
    still where few tokens are predicted.
    """
    with torch.device("meta"):
        model = build("llama", vocab_size=30_000)
    ids = np.arange(8 * 256).reshape(8, 256) % VOCABULARY
    few = np.where(ids % 10 == 0, ids, -100)
    peaks = {
        (kind, chunked): trace_step(
            model, {"input_ids": ids, "labels": labels}, padded=False, use_gpu=False, chunked_loss=chunked
        ).peak
        for kind, labels in (("all", ids), ("few", few))
        for chunked in (False, True)
    }
    logits = ids.size * 30_000 * 4
    assert peaks["all", False] > 3 * logits
    assert peaks["few", True] <= peaks["all", True] < logits
