"""`training.profile_steps`: which steps are recorded, and what becomes of a trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raytrain_nlp.errors import StorageError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.tracking.events import EventLog, read_events
from raytrain_nlp.trainer.profile import profiled


class Loop:
    """A training of so many steps, as far as a callback sees it."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.add_callback, self.remove_callback = self.callbacks.append, self.callbacks.remove

    def call(self, event: str, state: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(None, state, None)

    def train(self, total: int, begun: int = 0, ends: int | None = None) -> None:
        state = SimpleNamespace(global_step=begun, max_steps=total)
        self.call("on_train_begin", state)
        while state.global_step < (ends or total):
            self.call("on_step_begin", state)
            torch.ones(2, 2) @ torch.ones(2, 2)
            state.global_step += 1
            self.call("on_step_end", state)
        self.call("on_train_end", state)


def notices(paths: RunPaths) -> list[dict[str, Any]]:
    return [event for event, _ in read_events(paths.events) if event["kind"] == "notice"]


def profile(tmp_path: Path, steps: int, rank: int = 0, **training: Any) -> tuple[RunPaths, Loop]:
    paths, loop = RunPaths(tmp_path, "run"), Loop()
    paths.run.mkdir()
    with profiled(loop, steps, paths, EventLog(paths.events), rank):
        loop.train(**training)
    assert not loop.callbacks
    return paths, loop


@pytest.mark.parametrize(
    ("steps", "training", "said"),
    [(3, {"total": 10}, "steps 4 to 6"), (3, {"total": 5}, "steps 3 to 5"), (3, {"total": 2}, "steps 1 to 2"),
     (1, {"total": 1}, "step 1"), (2, {"total": 40, "begun": 30}, "steps 34 to 35"),
     (5, {"total": 10, "ends": 5}, "steps 4 to 5")],
    ids=["behind the first", "the last", "fewer than asked", "one", "resumed", "ended early"],
)  # fmt: skip
def test_which_steps_are_recorded(tmp_path: Path, steps: int, training: dict[str, Any], said: str) -> None:
    paths, _ = profile(tmp_path, steps, **training)
    (told,) = notices(paths)
    assert told["text"].startswith(f"profile of rank 0, {said}: {paths.run}")
    with gzip.open(paths.run / told["artifact"]) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    first, _, last = said.replace("steps ", "").replace("step ", "").partition(" to ")
    count = int(last or first) - int(first) + 1
    assert names.count("aten::mm") == count
    assert sum(name.startswith("ProfilerStep#") for name in names) == count + ("ends" in training)  # one had begun
    assert [path.name for path in paths.profile.iterdir()] == ["rank0.pt.trace.json.gz"]


@pytest.mark.parametrize(
    ("steps", "rank", "training"), [(0, 0, {"total": 9}), (3, 1, {"total": 9}), (3, 0, {"total": 9, "begun": 9})],
    ids=["not asked for", "another rank", "nothing left"],
)  # fmt: skip
def test_where_nothing_is_recorded_nothing_is_left(
    tmp_path: Path, steps: int, rank: int, training: dict[str, Any]
) -> None:
    paths, _ = profile(tmp_path, steps, rank, **training)
    assert not paths.profile.exists() and not notices(paths)


@pytest.mark.parametrize("error", [OSError("disk full"), StorageError("the bucket refuses")])
def test_a_trace_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from raytrain_nlp.storage.folder import Folder

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Folder, "push", refuse)
    paths, _ = profile(tmp_path, 1, total=6)
    (told,) = notices(paths)
    assert told["text"] == f"the profile cannot be written ({error}); training goes on." and "artifact" not in told


def test_a_training_that_fails_leaves_no_profiler_behind(tmp_path: Path) -> None:
    loop, paths = Loop(), RunPaths(tmp_path, "run")
    paths.run.mkdir()
    for _ in range(2):  # torch has one profiler a process
        with pytest.raises(KeyError), profiled(loop, 4, paths, EventLog(paths.events), 0):
            loop.callbacks.append(
                SimpleNamespace(on_train_begin=_nothing, on_step_begin=_fails_later, on_step_end=_nothing)
            )
            loop.train(9)
        loop.callbacks.clear()
    assert [told["text"].partition(":")[0] for told in notices(paths)] == ["profile of rank 0, steps 4 to 5"] * 2


def _fails_later(args: Any, state: Any, control: Any) -> None:
    if state.global_step == 5:
        raise KeyError("a user's")


def _nothing(*args: Any) -> None:
    pass
