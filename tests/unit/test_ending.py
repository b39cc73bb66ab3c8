"""A run that fails lets go of what it has opened, and its own error is what is told; Ray Data's settings stay the
user's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raytrain_nlp.config import load_job
from raytrain_nlp.launch.parallel_map import map_on_cluster
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.trainer import loader as loaders
from raytrain_nlp.worker import loop

JOB = {
    "name": "run",
    "task": {"type": "causal-lm"},
    "model": {"name_or_path": "x"},
    "data": {"train": "x.txt"},
    "workers": {"num_workers": 1, "use_gpu": False},
}


@pytest.mark.parametrize("fails", ["building", "training", "committing", "the end", None], ids=str)
@pytest.mark.parametrize("closing", ["closes well", "fails to close"])
def test_loaders_and_trainer_are_closed_however_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str | None, closing: str
) -> None:
    done: list[str] = []

    def act(name: str) -> Any:
        def action(*_: Any, **__: Any) -> None:
            done.append(name)
            if name == fails or (
                fails in done
                and name in ("train closed", "evaluation closed", "released")
                and closing == "fails to close"
            ):
                raise RuntimeError(name)

        return action

    def closed(name: str) -> Any:
        return SimpleNamespace(close=act(f"{name} closed"))

    trainer = SimpleNamespace(
        train=act("training"), release=act("released"), model=None, state=SimpleNamespace(global_step=1)
    )
    commits = SimpleNamespace(find=lambda note: None, finish=act("committing"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("raytrain_nlp.worker.folder_check.check_shared", lambda *_: None)
    monkeypatch.setattr("raytrain_nlp.worker.slow_steps.watched", lambda *_: contextlib.nullcontext(), raising=False)
    monkeypatch.setattr("raytrain_nlp.worker.preemption.noticed", lambda *_: contextlib.nullcontext(lambda: False))
    monkeypatch.setattr(loop, "_build_commits", lambda *_: commits)
    monkeypatch.setattr(loop, "_load_libraries", lambda *_: None, raising=False)
    monkeypatch.setattr(loop, "_build_loaders", lambda *_: (closed("train"), {"": closed("evaluation")}))
    monkeypatch.setattr(loop, "_build_trainer", lambda *_: [trainer, act("building")()][0])
    monkeypatch.setattr(loop, "_finish", lambda *_: act("the end")())
    spec = SimpleNamespace(
        job=load_job(JOB), train=None, versions={}, total_steps=1, steps_per_epoch=1, validation=None
    )
    arguments = (spec, RunPaths(tmp_path, "run"), str(tmp_path), lambda: False, EventLog(None), lambda: None)
    if fails is None:
        loop._run_rank(*arguments)
    else:
        with pytest.raises(RuntimeError, match=f"^{fails}$"):
            loop._run_rank(*arguments)
    assert {"train closed", "evaluation closed"} <= {*done} and ("released" in done) == (fails != "building")


def endless(ended: threading.Event) -> Iterator[Any]:
    try:
        step = 0
        while True:
            yield SimpleNamespace(tensors={"x": torch.zeros(1)}, step=step, micro=0)
            step += 1
    finally:
        ended.set()


def test_an_evaluation_that_was_left_in_the_middle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(loaders, "stream", lambda *_, **__: endless(ended))
    loader = loaders.EvalLoader(SimpleNamespace(), range(3), steps=3, world_size=1, rank=0, cpus=1)
    batches = iter(loader)
    next(batches)
    loader.close()
    assert ended.is_set()
    loaders.EvalLoader(SimpleNamespace(), range(3), steps=3, world_size=1, rank=0, cpus=1).close()  # never begun


def settings() -> tuple[Any, ...]:
    from ray.data import DataContext

    context = DataContext.get_current()
    options = context.execution_options
    return (
        options.preserve_order,
        options.resource_limits.cpu,
        context.enable_progress_bars,
        context.target_max_block_size,
        context.execution_no_progress_timeout_s,
    )


def test_the_feed_changes_nothing_of_ray_data_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data
    from ray.data import read_api

    from raytrain_nlp.data import feed

    before, made = settings(), []

    class Source:
        def __init__(self) -> None:
            self.context = ray.data.DataContext.get_current().copy()

        def map_batches(self, *_: Any, **__: Any) -> Any:
            context = self.context
            made.append(
                (
                    context.execution_options.preserve_order,
                    context.execution_options.resource_limits.cpu,
                    context.target_max_block_size,
                )
            )
            return SimpleNamespace(iter_batches=lambda **_: [])

    monkeypatch.setattr(read_api, "from_blocks", lambda blocks: Source())
    assert [*feed._execute(None, 0, 4, 2, 1, 0, 1, 0.25)] == []
    assert made == [(True, 0.25, feed._BLOCK_BYTES)] and settings() == before


def test_a_map_on_the_cluster_gives_the_settings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    import ray.data

    before, level, within = settings(), logging.getLogger("ray.data").level, []

    def from_items(*_: Any, **__: Any) -> Any:
        within.append(settings())
        return SimpleNamespace(map=lambda *_, **__: SimpleNamespace(iter_rows=lambda: iter([{"x": 1}, {"x": 2}])))

    monkeypatch.setattr(ray.data, "from_items", from_items)
    assert [*map_on_cluster(lambda row: row, [{}, {}])] == [{"x": 1}, {"x": 2}]
    results = map_on_cluster(lambda row: row, [{}, {}])
    next(iter(results))
    results.close()  # an error in the middle
    assert within[0][0] and not within[0][2] and settings() == before and logging.getLogger("ray.data").level == level
