"""Where the time of a step goes, what it costs, and that telling so costs nothing."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raytrain_nlp.data.split import MicroBatch
from raytrain_nlp.distributed import device, timeline
from raytrain_nlp.distributed.timeline import PHASES, Timeline
from raytrain_nlp.modeling.flops import ModelFlops
from raytrain_nlp.trainer import step_cost
from raytrain_nlp.trainer.step_cost import StepCost


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timeline, "moment", lambda: clock.now)
    return clock


def step(line: Timeline, clock: SimpleNamespace, micro_batches: int = 1) -> None:
    """Data 1 s, forward 2, backward 4 with 1 of waiting in it, consensus 0.5, update 3, then 0.25 of Python."""
    with line.phase("data_wait"):
        clock.now += 1
    for _ in range(micro_batches):
        line.mark("forward")
        clock.now += 2
        line.mark("backward")
        clock.now += 1
        with line.phase("communication_wait"):
            clock.now += 1
        clock.now += 2
        line.mark("communication_wait")
        clock.now += 0.5
        line.mark("update")
    clock.now += 3
    line.mark("other", ends_step=True)
    clock.now += 0.25


def test_a_mean_step_by_phase(clock: SimpleNamespace) -> None:
    line = Timeline()
    line.start()
    step(line, clock, micro_batches=2)
    step(line, clock, micro_batches=2)
    with line.phase("evaluation"):
        clock.now += 100
    with line.phase("checkpoint"):
        clock.now += 10
    line.mark("other", ends_step=True)  # the end of an epoch, which is no step
    assert line.read() == {
        "time/step": 1 + 2 * 6.5 + 3 + 0.25,
        "time/data_wait": 1,
        "time/forward": 4,
        "time/backward": 6,
        "time/communication_wait": 3,
        "time/update": 3,
        "time/checkpoint": 5,
    }
    assert line.read() == {}, "nothing since"
    step(line, clock)
    assert line.read()["time/step"] == 1 + 6.5 + 3, "what followed its end is not there yet"


def test_outside_of_a_training_nothing_is_kept(clock: SimpleNamespace) -> None:
    line = Timeline()
    step(line, clock)
    assert line.read() == {}
    line.start()
    step(line, clock)
    line.start()  # of another run in this process
    step(line, clock)
    assert line.read()["time/update"] == 3
    line.stop()
    step(line, clock)
    assert line.read() == {}


def test_events_that_a_gpu_has_not_reached_are_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA events: they pass when the stream comes to them, and waiting for one is an error."""
    stream = SimpleNamespace(reached=0, recorded=0, reads=0)

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            stream.recorded += 1
            self.at = stream.recorded

        def query(self) -> bool:
            return self.at <= stream.reached

        def elapsed_time(self, later: Any) -> float:
            assert later.query(), "it would fail"
            stream.reads += 1
            return 1000.0 * (later.at - self.at)

        def synchronize(self) -> None:
            raise AssertionError("the host waits")

    monkeypatch.setattr(device, "_use_gpu", True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    line = Timeline()
    line.start()
    for _ in range(3):
        for phase in ("forward", "backward", "communication_wait", "update"):
            line.mark(phase)
        line.mark("other", ends_step=True)
    assert stream.reads == 0, "a step reads nothing"
    assert line.read() == {}
    stream.reached = 2 * 5 + 1
    found = line.read()
    assert (found["time/forward"], found["time/update"]) == (1, 1) and found["time/step"] == pytest.approx(5)
    stream.reached = 100
    assert line.read()["time/forward"] == 1


def test_marks_of_a_step_cost_next_to_nothing() -> None:
    """A step of 10 ms may lose 0.05 ms to them; on a quiet machine it is a tenth of that."""
    line, best = Timeline(), float("inf")
    line.start()
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(100):
            with line.phase("data_wait"):
                pass
            for phase in ("forward", "backward", "communication_wait", "update"):
                line.mark(phase)
            line.mark("other", ends_step=True)
        line.read()
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 50e-6


def micro(rows: int, tokens: int, weight: int) -> MicroBatch:
    return MicroBatch(0, 0, np.arange(rows), weight, rows, tokens, tokens, tokens, {})


def read(cost: StepCost, monkeypatch: pytest.MonkeyPatch, peak: float | None, gpu: bool = True) -> dict[str, float]:
    monkeypatch.setattr(step_cost, "TIMELINE", SimpleNamespace(read=lambda: {"time/step": 0.5}))
    monkeypatch.setattr(step_cost, "uses_gpu", lambda: gpu)
    asked = []
    monkeypatch.setattr(step_cost, "peak_flops_here", lambda precision: (asked.append(precision), peak)[1])
    monkeypatch.setattr(step_cost, "count_flops", lambda model: ModelFlops(source=10, target=100))
    trainer = SimpleNamespace(
        args=SimpleNamespace(bf16=True, fp16=False, world_size=4),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=torch.nn.Linear(1, 1),
    )
    found = cost.read(trainer, 800.0)
    assert asked == ["bf16"]
    return found


def test_mfu_is_flops_of_a_step_over_its_time_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost()
    for _ in range(3):
        cost.add([micro(2, 30, 2), micro(2, 50, 2), micro(0, 9, 0)], rows_weigh=True)
    found = read(cost, monkeypatch, 1600.0)
    assert found == {"time/step": 0.5, "tokens_per_second_per_gpu": 200, "mfu": 10 * 80 / 0.5 / 1600}


def test_targets_of_an_encoder_decoder_are_the_tokens_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost()
    cost.add([micro(2, 30, 7)], rows_weigh=False)
    assert read(cost, monkeypatch, 1000.0)["mfu"] == (10 * 30 + 100 * 7) / 0.5 / 1000


def test_tokens_of_packed_documents_meet_those_of_their_own_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of 3 and 2 tokens; what is behind them is padding, of which nothing is learned."""
    cost = StepCost()
    tensors = {
        "position_ids": torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]]),
        "labels": torch.tensor([[-100, 5, 5, -100], [-100, 5, -100, -100]]),
    }
    cost.add([dataclasses.replace(micro(2, 5, 3), tensors=tensors)], rows_weigh=False)
    assert cost._parts == [(2, 5, 3, 3 * 3 + 2 * 2)]
    flops = ModelFlops(source=10, attention=100)
    assert flops.of_step(*cost._parts[0]) == 10 * 5 + 100 * 13
    assert flops.of_step(2, 5) == 10 * 5 + 100 * 5 * 2.5


def test_a_chip_of_unknown_peak_has_no_mfu_and_a_cpu_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost()
    cost.add([micro(2, 30, 7)], rows_weigh=False)
    assert read(cost, monkeypatch, None, gpu=False) == {"time/step": 0.5}


def test_the_peak_is_that_of_the_precision_torch_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.peak_flops_here("bf16") is None, "on CPU"
    monkeypatch.setattr(device, "_use_gpu", True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    for said, peak in (("tf32", 156e12), ("ieee", 19.5e12)):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=said))
        assert device.peak_flops_here("fp32") == peak and device.peak_flops_here("bf16") == 312e12
    assert set(PHASES) >= {"forward", "backward", "update", "data_wait", "communication_wait", "checkpoint"}
