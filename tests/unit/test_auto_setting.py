"""What a job leaves to the memory planner: which keys, on which machines; explicit values and resumed runs stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.cluster import auto, targets
from raytrain_nlp.cluster.gpus import Gpu, smallest_memory
from raytrain_nlp.config import load_job, public_values
from raytrain_nlp.config.auto import ACCUMULATION, CHECKPOINTING, STAGE
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.memory import fastest
from raytrain_nlp.memory.fastest import _micro_batch_counts
from raytrain_nlp.memory.step_time import step_seconds
from raytrain_nlp.memory.zero import Setting, Weights
from raytrain_nlp.verbs.fitting import fit_job, with_values

GPU = ("workers.use_gpu=true", "workers.num_workers=2")
CPU = ("workers.use_gpu=false", "workers.num_workers=2")
ROWS = ("training.per_device_train_batch_size=auto", "data.global_batch_size=50")


def job(*overrides: str) -> Any:
    values = {
        "task": {"type": "causal-lm"},
        "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
        "data": {"train": "train.jsonl"},
    }
    return load_job(values, overrides)


@pytest.mark.parametrize(
    ("overrides", "open_keys"),
    [
        (GPU, {STAGE}),
        (CPU, set()),
        ((*GPU, "deepspeed.zero_stage=0"), set()),
        ((*CPU, "deepspeed.zero_stage=auto"), {STAGE}),
        ((*GPU, "deepspeed.config={zero_optimization: {stage: 2}}"), set()),
        ((*GPU, "data.global_batch_size=50"), {STAGE, ACCUMULATION}),
        ((*CPU, "data.global_batch_size=50"), set()),
        ((*CPU, *ROWS), {ACCUMULATION}),
        ((*CPU, *ROWS, "training.gradient_accumulation_steps=2"), set()),
        ((*CPU, *ROWS, "deepspeed.config={train_micro_batch_size_per_gpu: 25}"), set()),
        ((*CPU, "training.gradient_checkpointing=auto"), {CHECKPOINTING}),
        ((*CPU, "training.gradient_checkpointing=true"), set()),
    ],
)
def test_what_is_left_open(overrides: tuple[str, ...], open_keys: set[str]) -> None:
    written = job(*overrides)
    assert written.auto == open_keys
    assert load_job(public_values(written)).auto == open_keys  # as a manifest or a sweep's record keeps it
    assert load_job(written).auto == open_keys
    chosen = {STAGE: 2, ACCUMULATION: 3, CHECKPOINTING: True}
    settled = with_values(written, {key: chosen[key] for key in open_keys})
    assert not settled.auto and not load_job(public_values(settled)).auto
    if ACCUMULATION in open_keys:
        assert (settled.global_batch_size, settled.arguments()["per_device_train_batch_size"]) == (50, 9)
    if STAGE in open_keys:
        assert settled.deepspeed.zero_stage == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.per_device_train_batch_size=auto", "per_device_train_batch_size: is auto, and without data.global"),
        ("deepspeed={zero_stage: auto, config: {}}", "zero_stage: auto contradicts the DeepSpeed configuration"),
        ("training.gradient_accumulation_steps=auto", "training.gradient_accumulation_steps: is wrong"),
    ],
)
def test_what_cannot_be_chosen(override: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        job(*CPU, override)
    with pytest.raises(InputError, match="data.batch_tokens: excludes"):
        job(*CPU, "training.per_device_train_batch_size=auto", "data.batch_tokens=512")


def test_offloading_says_the_least_stage() -> None:
    for override, stage in (("offload_optimizer=cpu", 1), ("offload_param=cpu", 3)):
        assert job(*GPU, f"deepspeed.{override}", "deepspeed.zero_stage=auto").deepspeed.zero_stage == stage


def test_a_resumed_run_keeps_its_setting() -> None:
    written = job(*GPU, *ROWS, "training.bf16=false")
    settled = with_values(written, {STAGE: 1, ACCUMULATION: 5})
    setting = {"values": {STAGE: 1, ACCUMULATION: 5}, "available": 10**9, "workers": 2}
    record = {"job": public_values(settled), "chosen": setting["values"], "setting": setting}
    resumed = auto.settled(written, record, find=lambda: targets.Place("here"))
    assert resumed.job == settled and resumed.chosen == setting["values"]
    nothing: Any = SimpleNamespace()
    # the same machine: it is not planned again
    assert fit_job(resumed.job, nothing, lambda: 10**9, kept=record).choice is None
    with pytest.raises(AttributeError):  # a smaller one: it is, which needs what was resolved
        fit_job(resumed.job, nothing, lambda: 10**9 - 1, kept=record)


def test_what_gpus_have() -> None:
    """The smallest counts; where other processes have much of one, what is free; of a cluster by Ray's names."""
    assert smallest_memory([Gpu("a", 80, True, 79), Gpu("b", 40, True)]) == 40
    assert smallest_memory([Gpu("a", 80, True, 30)]) == 30
    assert smallest_memory([Gpu("a", 80, True), Gpu("b", None, True)]) is None and smallest_memory([]) is None
    nodes = [{"GPU": 8.0, "accelerator_type:H100": 1.0}, {"GPU": 1.0, "accelerator_type:A10G": 1.0}, {"CPU": 4.0}]
    assert targets.place_of("the cluster", nodes).memory == 24 * 10**9
    assert targets.place_of("the cluster", [*nodes, {"GPU": 1.0}]).memory is None


def test_time_of_a_step_is_ordered_as_users_know_it() -> None:
    """Recomputing costs a third where the device is busy; ZeRO-3 costs Python's time where it is not; fewer, larger
    micro-batches cost less.
    """
    weights = Weights(10**9, 10**9, tensors=200)

    def seconds(stage: int = 0, recomputes: bool = False, count: int = 1, tokens: int = 100_000) -> float:
        return step_seconds(weights, Setting(stage, 4, True, mixed=True), recomputes, count, tokens)

    assert seconds(recomputes=True) / seconds() == pytest.approx(4 / 3, rel=0.03)
    assert seconds(0) <= seconds(1) <= seconds(2) <= seconds(3)
    assert seconds(3, tokens=1_000) > 4 * seconds(0, tokens=1_000)
    assert seconds(count=8, tokens=1_000) > 1.5 * seconds(count=1, tokens=8_000)


def test_micro_batches_are_told_apart_by_their_rows() -> None:
    rows = [-(-25 // count) for count in _micro_batch_counts(job(*CPU, *ROWS))]
    assert rows == sorted(set(rows), reverse=True) and rows[0] == 25 and rows[-1] == 1


def test_where_every_setting_is_refused_the_problems_of_the_fastest_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [fastest.Option({STAGE: stage}, stage, 1, 8, False, 1.0 + stage) for stage in (0, 2)]
    memory = SimpleNamespace(needs=lambda option: 1, untraced=0)
    monkeypatch.setattr(fastest, "_Memory", lambda *_: memory)
    monkeypatch.setattr(fastest, "_options", lambda *_: options)
    monkeypatch.setattr(fastest, "_by_time", lambda options: options)
    split: Any = SimpleNamespace(plan=SimpleNamespace(lengths=np.ones(4), spec=SimpleNamespace(num_rows=4)))

    def problems_of(values: dict[str, Any]) -> list[Problem]:
        return [Problem("training.optim", f"does not go with stage {values[STAGE]}", "Choose another.")]

    with pytest.raises(InputError, match="training.optim: does not go with stage 0"):
        fastest.choose(job(*GPU), None, split, None, 0, 10**9, problems_of)
    taken = fastest.choose(
        job(*GPU), None, split, None, 0, 10**9, lambda values: problems_of(values) if values[STAGE] == 0 else []
    )
    assert taken.values == {STAGE: 2}
