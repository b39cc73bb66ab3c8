"""The fastest setting that fits: six models by three sizes of memory on four GPUs, none of which is needed; and the
batches of two jobs on CPUs, which are those of the same jobs set by hand.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import plain_job, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.config import load_job
from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, STAGE
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.data.split import Split
from raytrain_nlp.memory import fastest, needs
from raytrain_nlp.memory.widest_batch import Shape
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.verbs.fitting import fit_job
from raytrain_nlp.verbs.train import prepare

GPUS = {"workers": {"num_workers": 4, "use_gpu": True}}
OPEN = (
    "training.per_device_train_batch_size=auto",
    "training.gradient_checkpointing=auto",
    "data.global_batch_size=64",
)


def job(*overrides: str, **sections: Any) -> Any:
    values = {
        "task": {"type": "causal-lm"},
        "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
        "data": {"train": "train.jsonl"},
        "training": {"bf16": True},
    }
    return load_job({**values, **sections}, overrides)


def bert(hidden: int, layers: int) -> Any:
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, intermediate_size=4 * hidden
    )
    return AutoModelForSequenceClassification.from_config(config)


def llama(hidden: int, layers: int, inner: int, heads: int, vocabulary: int = 32_000) -> Any:
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        vocab_size=vocabulary,
    )
    return AutoModelForCausalLM.from_config(config)


MODELS: dict[str, tuple[Any, int]] = {
    "BERT base": (lambda: bert(768, 12), 128),
    "BERT large": (lambda: bert(1024, 24), 512),
    "Llama 0.2B": (lambda: llama(1024, 12, 2816, 16), 1024),
    "Llama 1.2B": (lambda: llama(2048, 22, 5632, 16, 50_257), 2048),
    "Llama 7B": (lambda: llama(4096, 32, 11_008, 32), 2048),
    "Llama 7B LoRA": (lambda: adapted(llama(4096, 32, 11_008, 32)), 2048),
}
"""Name -> how it is made, and tokens of a row."""
SIZES = (16, 80, 141)
"""Gigabytes of a worker."""


def adapted(model: Any) -> Any:
    """As `lora: {r: 8, target_modules: [q_proj, v_proj]}` makes it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))


TABLE = {
    "BERT base": [(0, 1, False), (0, 1, False), (0, 1, False)],
    "BERT large": [(0, 1, True), (0, 1, False), (0, 1, False)],
    "Llama 0.2B": [(0, 2, False), (0, 1, False), (0, 1, False)],
    "Llama 1.2B": [(1, 2, True), (0, 2, False), (0, 1, False)],
    "Llama 7B": [None, (1, 8, False), (0, 16, False)],
    "Llama 7B LoRA": [(3, 2, True), (0, 4, False), (0, 2, False)],
}
"""ZeRO stage, micro-batches of a step of 64 rows on four workers, and checkpointing, for each of `SIZES`."""


@pytest.mark.parametrize("name", MODELS)
def test_six_models_by_three_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, length = MODELS[name]

    def shape(split: Any, of: Any, rows: int, evaluation: bool = False) -> Shape:
        ids = np.zeros((rows, length), np.int64)
        return Shape(rows, length, {"input_ids": ids, "labels": ids[:, 0] if "BERT" in name else ids}, False)

    traces: dict[Any, Any] = {}  # the same for all sizes

    def trace(model: Any, inputs: Any, **kinds: Any) -> Any:
        key = len(inputs["input_ids"]), model.is_activation_checkpointing, kinds["autocast"]
        return traces.setdefault(key, None) or traces.update({key: real(model, inputs, **kinds)}) or traces[key]

    real = needs.trace_step
    monkeypatch.setattr(needs, "trace_step", trace)
    monkeypatch.setattr(fastest, "widest_shape", shape)
    with torch.device("meta"):
        model = build().to(torch.bfloat16)
    encoder = "BERT" in name
    task = SimpleNamespace(rows_weigh=encoder, scores_tokens=not encoder, build_objective=lambda: None)
    rows = SimpleNamespace(
        task=task, plan=SimpleNamespace(lengths=np.full(64, length), spec=SimpleNamespace(num_rows=64))
    )
    found = [fastest.choose(job(*OPEN, **GPUS), model, rows, None, 10**9, size * 10**9) for size in SIZES]  # type: ignore[arg-type]
    keys = (STAGE, ACCUMULATION, CHECKPOINTING)
    assert [tuple(one.values[key] for key in keys) if one.fits else None for one in found] == TABLE[name]
    for one in found:
        assert one.fits == (one.taken.needs <= 0.95 * one.available)
        if one.fits:
            why = one.lines()[0]
            assert one.taken.told() in why
            best = one.taken.values == found[-1].values and one.faster is None
            assert best or one.faster and one.faster.seconds <= one.taken.seconds * 1.03 and "would need" in why
            assert one.second and one.second.seconds >= one.taken.seconds / 1.03 and one.lines()[1].startswith("next")
        else:
            assert one.lines()[0].startswith("no setting fits")


@pytest.mark.parametrize("packs", [False, True])
def test_batches_are_those_of_the_job_set_by_hand(tmp_path: Path, packs: bool) -> None:
    """Row ids of each step, on machines that leave room for different micro-batches."""
    write_rows(tmp_path / "train.jsonl", 150)
    task = {"type": "causal-lm", "text_column": "text"} if packs else {"type": "text-classification"}
    model = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
    shape = {"model": {"config": model, "tokenizer": "train"}} if packs else {}
    values = plain_job(tmp_path, "by-hand", data={"global_batch_size": 24}, **shape)
    values["task"] = task
    del values["training"]["per_device_train_batch_size"]
    plain = dict(values["training"])
    values["training"] = {**plain, "per_device_train_batch_size": 12}
    hand = prepared(load_job(values))
    values["training"] = {**plain, "per_device_train_batch_size": "auto", "gradient_checkpointing": "auto"}
    written = load_job({**values, "deepspeed": {"zero_stage": "auto"}})
    assert written.auto == {STAGE, ACCUMULATION, CHECKPOINTING}
    resolved = prepared(written)
    counts = set()
    for room in (10**11, least(written, resolved)):
        fitted = fit_job(written, resolved, lambda room=room: room)  # type: ignore[misc]
        assert not fitted.job.auto and fitted.resolved.spec.job.arguments() == fitted.job.arguments()
        counts.add(fitted.job.gradient_accumulation_steps)
        spec, by_hand = fitted.resolved.spec, hand.spec
        assert (spec.total_steps, spec.data_fingerprint) == (by_hand.total_steps, by_hand.data_fingerprint)
        for step in range(spec.total_steps):
            rows = Split(spec.train).plan.at(step)[2]
            assert np.array_equal(rows, Split(by_hand.train).plan.at(step)[2])
            parts = split_batch(rows, 2, fitted.job.gradient_accumulation_steps)
            assert np.array_equal(np.concatenate([part for micro in parts for part in micro]), rows)
            most = max(len(part) for micro in parts for part in micro)
            assert most <= fitted.job.arguments()["per_device_train_batch_size"]
    assert len(counts) == 2


def prepared(written: Any) -> Any:
    resolved_job = settled(written).job
    storage = Path(written.storage_path)
    storage.mkdir(exist_ok=True)
    return prepare(resolved_job, find_job_files(resolved_job, storage), storage, None, Observer())


def least(written: Any, resolved: Any) -> int:
    """Bytes of a worker that leave room for the setting that needs least, and for little more."""
    choice = fit_job(written, resolved, lambda: 1).choice
    assert choice is not None and not choice.fits
    return round(choice.taken.needs / 0.95) + 1
