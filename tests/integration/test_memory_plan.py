"""Memory plans of whole models: a step counted by hand, one traced against what torch's own profiler sees, Llamas as
published, and the advice where it does not fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import plain_job, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

import raytrain_nlp
from raytrain_nlp.cluster import gpus
from raytrain_nlp.memory.activations import trace_step
from raytrain_nlp.memory.widest_batch import checkpoint_activations

LLAMA = {
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
PUBLISHED = {"8B": 8_030_261_248, "70B": 70_553_706_496}
"""Parameters of Llama 3.1 on their model cards."""


class Stack(torch.nn.Module):
    """Linear layers without bias, each with a ReLU."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(width, width, bias=False, device="meta") for _ in range(layers)
        )

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return SimpleNamespace(loss=x.sum())


def test_a_stack_of_linear_layers_by_hand() -> None:
    """Each ReLU keeps its result, which is the next layer's input; on top of them one more while the last layer, or the
    first of the backward pass, makes its own. Gradients are counted as done from the last layer to the first."""
    layers, width, rows = 6, 8, 500
    trace = trace_step(Stack(layers, width), {"x": np.zeros((rows, width), np.float32)}, padded=False, use_gpu=False)
    kept, weight = rows * width * 4, width * width * 4
    assert (layers + 1) * kept <= trace.peak <= (layers + 1) * kept + 2 * weight
    assert [done for done, _, _ in trace.points] == [number * width * width for number in range(layers + 1)]
    assert trace.points[-1][1] <= kept + weight and trace.small_peak == trace.peak
    twice = trace_step(
        Stack(layers, width), {"x": np.zeros((2 * rows, width), np.float32)}, padded=False, use_gpu=False
    )
    between = trace_step(
        Stack(layers, width), {"x": np.zeros((rows * 3 // 2, width), np.float32)}, padded=False, use_gpu=False
    )
    assert trace.towards(twice, 0.5) == between


BERT = BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, vocab_size=500)
LLAMA_TINY = LlamaConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=160,
    vocab_size=4000,
)


@pytest.mark.parametrize("kind", ["bert with dropout", "llama", "llama, recomputed"])
def test_a_traced_step_takes_what_a_real_one_takes(kind: str, tmp_path: Path) -> None:
    """Against the allocations that torch's profiler sees in a real forward and backward on CPU: scores of attention,
    vocabulary, recomputation.
    """
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
        assert trace.peak == pytest.approx(
            profiled_peak(lambda: real(**tensors).loss.backward(), tmp_path / "trace.json"), rel=0.05
        )


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
    return plain_job(
        folder,
        "llama",
        task={"type": "causal-lm", "text_column": "text", "text_columns": None},
        model={"config": {"model_type": "llama", "vocab_size": 128_256, **LLAMA[size]}},
        data={"max_length": 256},
        training={"per_device_train_batch_size": 1, "bf16": True, **training},
        deepspeed={"zero_stage": 3},
        workers={"num_workers": workers, "use_gpu": True},
    )


@pytest.mark.parametrize(("size", "workers"), [("8B", 8), ("70B", 64)])
def test_llama_on_gpus_that_are_not_here(folder: Path, size: str, workers: int) -> None:
    """Without weights: states are ZeRO's 16 bytes a parameter over the workers (section 3.1), and the plan fits an
    H100.
    """
    job = llama_job(folder, size, workers)
    del job["task"]["text_columns"]
    report = raytrain_nlp.check(job, worker_memory="80GB")
    parts = report.memory.parts
    assert report.parameters == PUBLISHED[size]
    assert [parts[name] for name in ("weights", "gradients", "optimizer")] == pytest.approx(
        [PUBLISHED[size] * share / workers for share in (2, 2, 12)], abs=1
    )
    assert report.memory.fits and report.memory.advice is None and report.memory.total < 80e9
    assert parts["buffers"] >= 2 * 500_000_000  # DeepSpeed's bucket of gradients


GPU = {"workers": {"use_gpu": True}, "training": {"bf16": True}}


@pytest.mark.parametrize(
    ("hidden", "rows", "share"), [(4096, 20, 0.8), (4096, 20, 0.4), (4096, 20, 0.0), (512, 200, 0.4)]
)
def test_advice_is_the_least_change_that_fits(tmp_path: Path, hidden: int, rows: int, share: float) -> None:
    """What is advised fits when it is planned by itself, and no part of it alone would do; where nothing fits it says
    so.

    The first model is large by its weights, the other by the rows of a step.
    """
    write_rows(tmp_path / "train.jsonl", 200)
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": 3,
        "num_attention_heads": hidden // 128,
        "intermediate_size": 4 * hidden,
    }
    job = plain_job(tmp_path, "advice", **GPU, model={"config": {"model_type": "bert", **shape}})
    job["training"]["per_device_train_batch_size"] = rows
    job["deepspeed"] = {"zero_stage": 0}  # said, so that nothing is chosen
    needed = raytrain_nlp.check(job, worker_memory="1TB").memory.total - 10**9
    has = str(round((10**9 + share * needed) / 0.95))
    memory = raytrain_nlp.check(job, worker_memory=has).memory
    assert memory.fits is False
    if share == 0:
        assert memory.advice.startswith("No number of workers helps")
        return
    changes = memory.advice.removeprefix("It fits with --set ").removesuffix(".").split(" --set ")
    assert raytrain_nlp.check(job, overrides=changes, worker_memory=has).memory.fits
    alone = [change for change in changes if "accumulation" not in change]  # which goes with the size of a micro-batch
    assert any("batch_size" in change for change in alone) == (hidden == 512)
    for change in alone if len(alone) > 1 else []:
        if "offload" in change:  # which needs a ZeRO stage
            continue
        together = [change, *(other for other in changes if "accumulation" in other and "batch_size" in change)]
        assert not raytrain_nlp.check(job, overrides=together, worker_memory=has).memory.fits


def test_a_step_that_cannot_be_traced_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that looks at its values, of which a trace has none. The machine has GPUs that do not say how large
    they are.
    """
    monkeypatch.setattr(gpus, "local_gpus", lambda: [gpus.Gpu("GPU", None, True)] * 2)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a tensor without values has no item")

    monkeypatch.setattr("raytrain_nlp.memory.needs.trace_step", refuse)
    job = plain_job(
        folder, "short", **GPU, model={"config": {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}}
    )
    memory = raytrain_nlp.check(job).memory
    assert (
        memory.note == "a tensor without values has no item"
        and memory.parts["activations"] == 0
        and memory.available is None
        and memory.fits is None
    )
