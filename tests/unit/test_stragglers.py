"""A rank that is slower than the others is named with what it is slow in; ranks that are alike are not, however busy
their machine; waiting for another rank is no work of one's own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raytrain_nlp.compat.torch import when_backward_ends
from raytrain_nlp.distributed import timeline
from raytrain_nlp.distributed.timeline import OWN, Timeline
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.trainer.verify import stragglers
from raytrain_nlp.trainer.verify.stragglers import StragglerCallback, find_straggler


def ranks_of(count: int, steps: int, seed: int, noise: float = 0.1, scale: float = 0.2) -> list[np.ndarray]:
    """Seconds of ranks that are alike, with the noise of a machine on which others work: each step of each rank takes
    longer by chance, and for seconds on end all ranks are slowed down by a factor of up to three.
    """
    draw = np.random.default_rng(seed)
    usual = np.array([0.02, 0.3, 0.5, 0.15, 0.03]) * scale
    busy = np.repeat(draw.uniform(1, 3, steps // 10 + 1), 10)[:steps, None]
    return [usual * busy * draw.lognormal(0, noise, (steps, len(OWN))) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8, 32])
@pytest.mark.parametrize("phase", OWN)
def test_a_slow_rank_is_named_with_the_phase_in_which_it_is_slow(count: int, phase: str) -> None:
    for seed in range(5):
        seconds, slow = ranks_of(count, 50, seed), seed % count
        whole = np.mean([part.sum(axis=1) for part in seconds])
        seconds[slow][:, OWN.index(phase)] += 0.6 * whole * 2
        found = find_straggler(seconds)
        assert found is not None and (found.rank, found.phase) == (slow, phase)
        assert found.waits_for == ("data" if phase == "data_wait" else "compute")
        assert found.own > 1.3 * found.others and f"rank {slow} is " in found.text


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("noise", [0.05, 0.3, 0.8])
def test_ranks_that_are_alike_are_never_named(count: int, noise: float) -> None:
    assert [find_straggler(ranks_of(count, 50, seed, noise)) for seed in range(200)] == [None] * 200


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda part: part * 1.2, "less than the share"),
        (lambda part: np.where(np.arange(50)[:, None] < 30, part * 3, part), "not all the time"),
        (lambda part: np.where(np.arange(50)[:, None] == 7, part * 100, part), "a single step"),
    ],
)
def test_what_is_no_straggler(change: Any, why: str) -> None:
    seconds = ranks_of(4, 50, 1)
    seconds[2] = change(seconds[2])
    assert find_straggler(seconds) is None, why


def test_milliseconds_are_none_and_one_rank_has_no_others() -> None:
    seconds = ranks_of(2, 50, 0, scale=0.002)
    seconds[0] *= 2
    assert find_straggler(seconds) is None and find_straggler(seconds[:1]) is None and find_straggler([]) is None


def callback_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Any) -> tuple[StragglerCallback, Any]:
    """The first rank's callback; `others` makes what it is told of all ranks."""
    monkeypatch.setattr(stragglers, "gather_objects", lambda mine, to_rank: others())
    callback = StragglerCallback(EventLog(tmp_path / "events.jsonl"), 0)

    def told() -> list[dict[str, Any]]:
        lines = (tmp_path / "events.jsonl").read_text().splitlines() if (tmp_path / "events.jsonl").exists() else []
        return [json.loads(line) for line in lines]

    return callback, told


def test_a_straggler_is_told_once_and_again_when_it_is_another_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[int | None] = [None]

    def others() -> list[np.ndarray]:
        seconds = [part.astype(np.float32) * 10 for part in ranks_of(3, 50, 0)]
        if slow[0] is not None:
            seconds[slow[0]][:, OWN.index("data_wait")] += 5
        return seconds

    callback, told = callback_of(tmp_path, monkeypatch, others)
    for step, rank in enumerate([None, 1, 1, 1, 2, None, None], 1):
        slow[0] = rank
        for at in range(step * 50 - 49, step * 50 + 1):
            callback.on_step_end(None, SimpleNamespace(global_step=at), None)
    found = told()
    assert [(event["kind"], event.get("step"), event.get("rank"), event.get("waits_for")) for event in found] == [
        ("straggler", 100, 1, "data"), ("straggler", 250, 2, "data"), ("notice", None, None, None),
    ]  # fmt: skip
    assert (
        "waiting for its rows" in found[0]["text"]
        and "rank 2 keeps up with the others again (step 300)" in found[2]["text"]
    )


def test_short_steps_are_judged_over_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def others() -> list[np.ndarray]:
        seconds = [part.astype(np.float32) for part in ranks_of(2, 50, 0, scale=0.1)]
        seconds[1] *= 2
        return seconds

    callback, told = callback_of(tmp_path, monkeypatch, others)
    until = next(
        step for step in range(50, 5000, 50)
        if callback.on_step_end(None, SimpleNamespace(global_step=step), None) or told()
    )  # fmt: skip
    took = sum(float(others()[1].sum()) for _ in range(until // 50))
    assert took >= 30 and took - float(others()[1].sum()) < 30 and f"over {until} steps" in told()[0]["text"]


def test_steps_are_told_by_phase_without_what_is_no_work_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timeline, "moment", lambda: now[0])
    line = Timeline()
    line.start()
    for _ in range(2):
        for phase, seconds in (
            ("data_wait", 1),
            ("forward", 2),
            ("backward", 3),
            ("communication_wait", 50),
            ("update", 4),
        ):
            line.mark(phase)
            now[0] += seconds
        line.mark("other", ends_step=True)
        with line.phase("checkpoint"):
            now[0] += 70
        now[0] += 5
    assert line.steps() == [[1, 2, 3, 4, 0], [1, 2, 3, 4, 5]] and line.steps() == []
    assert line.read()["time/communication_wait"] == 50


def test_the_end_of_this_rank_s_own_gradients_comes_before_what_is_asked_for_later() -> None:
    order: list[str] = []
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * 2).sum()
    when_backward_ends(loss, lambda: order.append("own gradients"))
    queue = torch.autograd.Variable._execution_engine.queue_callback
    weight.register_hook(lambda gradient: queue(lambda: order.append("as DDP does")))
    weight.register_post_accumulate_grad_hook(lambda weight: order.append("last gradient"))
    loss.backward()
    assert order == ["last gradient", "own gradients", "as DDP does"]
    when_backward_ends(torch.zeros(()), lambda: order.append("never"))


def test_collectives_of_deepspeed_and_waiting_for_them_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib
    from collections.abc import Iterator

    from raytrain_nlp.compat import deepspeed

    inside: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        began = time.perf_counter()
        yield
        inside.append("waited" if time.perf_counter() - began > 0.01 else "short")

    work = SimpleNamespace(wait=lambda: time.sleep(0.02), is_completed=lambda: True)
    names = deepspeed._COLLECTIVES
    connection = SimpleNamespace(**{name: lambda *args, **kwargs: work for name in names})
    connection.barrier = lambda: time.sleep(0.02)
    fake = SimpleNamespace(comm=SimpleNamespace(comm=SimpleNamespace(cdb=connection)))
    monkeypatch.setattr(deepspeed, "import_deepspeed", lambda: fake)
    for _ in range(2):  # a process may have one training after another
        deepspeed.apply_around_collectives(around)
    connection.barrier()
    handle = connection.all_reduce(1, async_op=True)
    handle.wait()
    assert inside == ["waited", "short", "waited"] and handle.is_completed()
