"""How a run is stopped and taken up again: the word to its ranks, when it is given, what is said at the end, and from
which folder it came.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.checkpoint.manifest import Manifest, checkpoint_name
from raytrain_nlp.paths import RunPaths, write_json
from raytrain_nlp.run import interruption
from raytrain_nlp.run.interruption import stopped, stops_at_checkpoint, training_runs
from raytrain_nlp.run.origin import from_origin, origin_of
from raytrain_nlp.run.stop_request import ask_to_move, ends_after_checkpoint, forget
from raytrain_nlp.tracking.events import EventLog


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    return paths


def test_the_ranks_are_told_whether_to_move_or_to_end(paths: RunPaths) -> None:
    assert not ends_after_checkpoint(paths)
    ask_to_move(paths, "a node leaves")
    assert json.loads(paths.move.read_text())["reason"] == "a node leaves" and not ends_after_checkpoint(paths)
    ask_to_move(paths, "stopped", then_end=True)
    assert ends_after_checkpoint(paths)
    forget(paths)
    assert not paths.move.exists() and not ends_after_checkpoint(paths)
    forget(paths)


def test_a_request_that_is_cut_off_ends_no_run(paths: RunPaths) -> None:
    paths.move.write_text('{"then": "end"')
    assert not ends_after_checkpoint(paths)


START, TRAIN, STEP = (
    ("start", {"step": 0}),
    ("phase", {"phase": "train"}),
    ("log", {"step": 1, "metrics": {"loss": 1.0}}),
)
SUMMARY, RESUME, END = ("log", {"step": 9, "metrics": {"train_runtime": 3.0}}), ("resume", {"step": 5}), ("end", {})


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], False),
        ([START], False),
        ([START, ("phase", {"phase": "setup"})], False),
        ([START, TRAIN], True),
        ([START, TRAIN, STEP], True),
        ([START, TRAIN, STEP, SUMMARY], False),
        ([START, TRAIN, STEP, RESUME], False),
        ([START, TRAIN, STEP, RESUME, TRAIN], True),
        ([START, TRAIN, STEP, SUMMARY, END], False),
    ],
    ids=lambda value: "-".join(kind for kind, _ in value) or "nothing" if isinstance(value, list) else str(value),
)
def test_workers_hear_a_word_only_while_they_train(
    paths: RunPaths, told: list[tuple[str, dict[str, Any]]], expected: bool
) -> None:
    """Ctrl-C would wait for a checkpoint that nobody writes, or end a run without the one it could have had."""
    log = EventLog(paths.events)
    for kind, fields in told:
        log.write(kind, **fields)
    assert training_runs(paths) is expected


def test_what_an_earlier_driver_did_is_not_training_of_this_one(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first signal interrupts until this driver's workers train; then it has them commit, and is noted before
    anything is waited for.
    """
    hooks: list[Callable[[], str | None]] = []
    words: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def registered(where: list[Any], function: Any) -> Iterator[None]:
        where.append(function)
        yield
        where.remove(function)

    monkeypatch.setattr(interruption.signals, "asking", lambda hook: registered(hooks, hook))
    monkeypatch.setattr(interruption.signals, "at_once", lambda word: registered(words, word))
    log, noted = EventLog(paths.events), []
    for kind, fields in (START, TRAIN, STEP):
        log.write(kind, **fields)
    with stops_at_checkpoint(paths, lambda: noted.append(1), lambda: None):
        assert hooks[0]() is None and not paths.move.exists() and not noted
        log.write("resume", step=1)
        log.write("phase", phase="train")
        line = hooks[0]()
        assert (
            line is not None
            and "a checkpoint is committed" in line
            and ends_after_checkpoint(paths)
            and noted == [1]
            and len(words) == 1
        )
    assert not hooks and not words


def test_the_last_line_says_where_the_run_stands_and_how_to_go_on(paths: RunPaths) -> None:
    assert "before the first checkpoint" in str(stopped(paths)) and "--resume" in str(stopped(paths))
    for step in (5, 20, 100):
        folder = paths.checkpoints / checkpoint_name(step)
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", vars(Manifest(step, 1, 0, "data", {}, [])))
    (paths.checkpoints / checkpoint_name(200)).mkdir()  # never committed
    assert f"the run stands at step 100 ({paths.checkpoints / 'checkpoint-100'}). Continue with --resume." in str(
        stopped(paths)
    )


def test_a_job_started_elsewhere_finds_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate RUN` from another folder would read other data of the same name, or none."""
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "data" / "splits").mkdir(parents=True)
    other.mkdir()
    for name in ("train.jsonl", "a-1.csv", "a-2.csv"):
        (home / "data" / name).write_text("x")
    monkeypatch.chdir(other)
    data = {
        "train": ["data/train.jsonl", "data/a-*.csv", "data/splits:train", "hf://x/y:train"],
        "validation": {"one": "data/train.jsonl", "two": "~/v.jsonl"},
    }
    job = {"model": {"name_or_path": "data", "tokenizer": "bert-base-uncased"}, "data": data, "seed": 1}
    found = from_origin(job, str(home))
    assert found["data"]["train"] == [
        f"{home}/data/train.jsonl",
        f"{home}/data/a-*.csv",
        f"{home}/data/splits:train",
        "hf://x/y:train",
    ]
    assert found["data"]["validation"] == {"one": f"{home}/data/train.jsonl", "two": "~/v.jsonl"}
    assert found["model"] == {"name_or_path": f"{home}/data", "tokenizer": "bert-base-uncased"} and found["seed"] == 1
    assert job["data"]["train"][0] == "data/train.jsonl", "the job that was given is not changed"
    assert from_origin(job, str(other)) == job


def test_a_folder_that_is_gone_is_not_the_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert origin_of({"folder": "/"}) == "/"
    for record in ({"folder": str(tmp_path / "gone")}, {}, {"folder": 7}):
        assert origin_of(record) == str(tmp_path)
