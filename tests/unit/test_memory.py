"""The memory plan: ZeRO's published figures, a step traced without memory against torch's own profiler, and the advice where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_job, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

import raytrain_nlp
from raytrain_nlp.driver.calibrate import predict_mean
from raytrain_nlp.driver.shapes import checkpoint_activations
from raytrain_nlp.driver.sizes import parse_bytes
from raytrain_nlp.modeling.trace import trace_step
from raytrain_nlp.modeling.zero import Setting, Weights, model_states, step_memory

LLAMA = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8},
}
PUBLISHED = {"8B": 8_030_261_248, "70B": 70_553_706_496}
"""Parameters of Llama 3.1 on their model cards."""


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al. 2020: 7.5 billion parameters on 64 GPUs, mixed precision with Adam."""
    setting = Setting(zero_stage=stage, num_workers=64, use_gpu=True, mixed=True, weight_bytes=2 if stage == 0 else 4)
    states = model_states(Weights(7_500_000_000, 7_500_000_000), setting)
    total = states.total if stage else states.weights + states.gradients + 7.5e9 * 12  # without ZeRO there is no master copy here, but the paper has one
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_states_of_an_adapter_and_in_fp32() -> None:
    """Frozen weights have no gradient and no optimizer; in fp32 stage 2 keeps a master copy, stage 3 none."""
    weights = Weights(total=1_000, trainable=100)
    plain = model_states(weights, Setting(zero_stage=0, num_workers=2, use_gpu=False))
    assert (plain.weights, plain.gradients, plain.optimizer) == (4_000, 400, 800)
    second, third = (model_states(weights, Setting(zero_stage=stage, num_workers=2, use_gpu=False)) for stage in (2, 3))
    assert (second.weights, second.gradients, second.optimizer) == (4_000, 200, 600)
    assert (third.weights, third.gradients, third.optimizer) == (2_000, 200, 400)
    quantized = model_states(Weights(total=1_000, trainable=100, quantized=800), Setting(zero_stage=0, num_workers=1, use_gpu=True, weight_bytes=2, quantized_bytes=0.5))
    assert quantized.weights == 200 * 2 + 800 / 2


def test_offloaded_states_leave_the_gpu() -> None:
    weights, trace = Weights(1_000, 1_000), trace_step(Stack(1, 4), {"x": np.zeros((2, 4), np.float32)}, padded=False, use_gpu=True)
    setting = Setting(zero_stage=3, num_workers=2, use_gpu=True, mixed=True, offload_optimizer=True, offload_param=True)
    parts = step_memory(weights, setting, trace)
    assert (parts["weights"], parts["gradients"], parts["optimizer"], parts["host"]) == (0, 0, 0, 1_000 * (2 + 2 + 12) / 2)


class Stack(torch.nn.Module):
    """Linear layers without bias, each with a ReLU."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False, device="meta") for _ in range(layers))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return SimpleNamespace(loss=x.sum())


def test_a_stack_of_linear_layers_by_hand() -> None:
    """Each ReLU keeps its result, which is the next layer's input; on top of them one more while the last layer, or the first of
    the backward pass, makes its own. Gradients are counted as done from the last layer to the first."""
    layers, width, rows = 6, 8, 500
    trace = trace_step(Stack(layers, width), {"x": np.zeros((rows, width), np.float32)}, padded=False, use_gpu=False)
    kept, weight = rows * width * 4, width * width * 4
    assert (layers + 1) * kept <= trace.peak <= (layers + 1) * kept + 2 * weight
    assert [done for done, _, _ in trace.points] == [number * width * width for number in range(layers + 1)]
    assert trace.points[-1][1] <= kept + weight and trace.small_peak == trace.peak
    twice = trace_step(Stack(layers, width), {"x": np.zeros((2 * rows, width), np.float32)}, padded=False, use_gpu=False)
    between = trace_step(Stack(layers, width), {"x": np.zeros((rows * 3 // 2, width), np.float32)}, padded=False, use_gpu=False)
    assert trace.towards(twice, 0.5) == between


BERT = BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, vocab_size=500)
LLAMA_TINY = LlamaConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160, vocab_size=4000)


@pytest.mark.parametrize("kind", ["bert with dropout", "llama", "llama, recomputed"])
def test_a_traced_step_takes_what_a_real_one_takes(kind: str, tmp_path: Path) -> None:
    """Against the allocations that torch's profiler sees in a real forward and backward on CPU: scores of attention, vocabulary, recomputation."""
    torch.manual_seed(0)
    auto, config = (AutoModelForSequenceClassification, BERT) if "bert" in kind else (AutoModelForCausalLM, LLAMA_TINY)
    ids = np.random.default_rng(0).integers(5, 500, (8, 96))
    mask = np.ones_like(ids)
    mask[:, 90:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 2 if "bert" in kind else ids}
    with torch.device("meta"):
        empty = auto.from_config(config)
    with checkpoint_activations(empty, "recomputed" in kind):
        trace = trace_step(empty, batch, padded=True, use_gpu=False)
    real = auto.from_config(config).train()
    for parameter in real.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    with checkpoint_activations(real, "recomputed" in kind):
        assert trace.peak == pytest.approx(profiled_peak(lambda: real(**tensors).loss.backward(), tmp_path / "trace.json"), rel=0.05)


def profiled_peak(run: Any, file: Path) -> int:
    """Most bytes allocated at once while `run` runs, beyond those before, by torch's profiler."""
    run()  # what is made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(file))
    found = [event for event in json.loads(file.read_text())["traceEvents"] if event["name"] == "[memory]"]
    now, peak = 0, 0
    for event in sorted(found, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", 40)
    return tmp_path


def llama_job(folder: Path, size: str, workers: int, **training: Any) -> dict[str, Any]:
    return tiny_job(
        folder, "llama", task={"type": "causal-lm", "text_column": "text", "text_columns": None},
        model={"config": {"model_type": "llama", "vocab_size": 128_256, **LLAMA[size]}}, data={"max_length": 256},
        training={"per_device_train_batch_size": 1, "bf16": True, **training}, deepspeed={"zero_stage": 3}, workers={"num_workers": workers, "use_gpu": True},
    )  # fmt: skip


@pytest.mark.parametrize(("size", "workers"), [("8B", 8), ("70B", 64)])
def test_llama_on_gpus_that_are_not_here(folder: Path, size: str, workers: int) -> None:
    """Without weights: states are ZeRO's 16 bytes a parameter over the workers (section 3.1), and the plan fits an H100."""
    job = llama_job(folder, size, workers)
    del job["task"]["text_columns"]
    report = raytrain_nlp.check(job, worker_memory="80GB")
    parts = report.memory.parts
    assert report.parameters == PUBLISHED[size]
    assert [parts[name] for name in ("weights", "gradients", "optimizer")] == pytest.approx([PUBLISHED[size] * share / workers for share in (2, 2, 12)], abs=1)
    assert report.memory.fits and report.memory.advice is None and report.memory.total < 80e9
    assert parts["buffers"] >= 2 * 500_000_000  # DeepSpeed's bucket of gradients


GPU = {"workers": {"use_gpu": True}, "training": {"bf16": True, "per_device_train_batch_size": 20}}


@pytest.mark.parametrize("share", [0.6, 0.25, 0.0])
def test_advice_is_the_least_change_that_fits(folder: Path, share: float) -> None:
    """What is advised fits when it is planned by itself, and no part of it alone would do; where nothing fits it says so."""
    large = {"model_type": "bert", "hidden_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 32, "intermediate_size": 16384}
    job = tiny_job(folder, "advice", **GPU, model={"config": large})
    needed = raytrain_nlp.check(job, worker_memory="1TB").memory.total - 10**9
    has = str(round((10**9 + share * needed) / 0.95))
    memory = raytrain_nlp.check(job, worker_memory=has).memory
    assert memory.fits is False
    if share == 0:
        assert memory.advice.startswith("No number of workers helps")
        return
    changes = memory.advice.removeprefix("It fits with --set ").removesuffix(".").split(" --set ")
    assert raytrain_nlp.check(job, overrides=changes, worker_memory=has).memory.fits
    alone = [change for change in changes if "accumulation" not in change and "offload" not in change]  # which needs a ZeRO stage
    for change in alone if len(changes) > 2 else []:
        together = [change, *(other for other in changes if "accumulation" in other and "batch_size" in change)]
        assert not raytrain_nlp.check(job, overrides=together, worker_memory=has).memory.fits


def test_a_step_that_cannot_be_traced_is_told(folder: Path) -> None:
    """Rows longer than the model has positions for, as training would find out."""
    job = tiny_job(folder, "short", **GPU, model={"config": {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 8}})
    memory = raytrain_nlp.check(job).memory
    assert memory.note and memory.parts["activations"] == 0 and memory.available is None and memory.fits is None


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("80 GiB", 80 * 2**30), ("512m", 512 * 10**6), ("1.5T", 1_500 * 10**9), ("1024", 1024)])
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text, "here") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "80 apples"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(raytrain_nlp.InputError, match="here: is no amount of memory"):
        parse_bytes(text, "here")


def test_mean_step_follows_the_tokens_of_the_plan() -> None:
    """Seconds that are a constant and a share of the tokens are found again; a line that no step can follow is not used."""
    tokens = np.array([100, 400, 250, 300])
    assert predict_mean(tokens, 0.5 + tokens / 1000, 500) == pytest.approx(1.0)
    assert predict_mean(tokens, 1 - tokens / 1000, 500) == pytest.approx((1 - tokens / 1000).mean())
    assert predict_mean(tokens, tokens / 1000 - 0.05, 200) == pytest.approx(200 * (tokens / 1000 - 0.05).sum() / tokens.sum())
    assert predict_mean(np.array([100, 100]), np.array([1.0, 3.0]), 700) == 2
