"""The parts of a worker, each alone: callbacks, logs, what it lets go of, its notice to leave, its runs one after the
other, scoring, what it sends back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from fake_bucket import use_fake_bucket
from support import plain_job

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError, StorageError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.stop_request import ask_to_move
from raytrain_nlp.storage import open_storage
from raytrain_nlp.storage.folder import Folder
from raytrain_nlp.tracking.events import EventLog, read_events
from raytrain_nlp.worker import callbacks, node_load, pool_worker, preemption, progress, scoring
from raytrain_nlp.worker.callbacks import ClockCallback, EvalProgress, EventCallback, LayerdropCallback
from raytrain_nlp.worker.cleanup import letting_go
from raytrain_nlp.worker.logs import rank_log
from raytrain_nlp.worker.pool_worker import run_pool_worker
from raytrain_nlp.worker.preemption import noticed
from raytrain_nlp.worker.scoring import SCORES, ScoringSpec, run_scoring
from raytrain_nlp.worker.spec import WorkerSpec
from raytrain_nlp.worker.uploads import errors_of_before, event_log, send_results


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    return paths


def told(paths: RunPaths) -> list[dict[str, Any]]:
    return [event for event, _ in read_events(paths.events)]


class Clock:
    """Time that goes on when it is told to."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (callbacks, progress):
        monkeypatch.setattr(module, "time", clock)
    return clock


# callbacks


def test_figures_go_to_the_event_log_with_the_load_of_the_machine(paths: RunPaths) -> None:
    callback, state = (
        EventCallback(EventLog(paths.events), paths.progress, paths.nodes, 10),
        SimpleNamespace(global_step=3, epoch=0.5),
    )
    callback.on_train_begin(None, state, None)
    callback.on_log(None, state, None, logs={"loss": 0.5, "note": "text"})
    callback.on_log(None, state, None, logs={"eval_loss": 0.25})
    phase, log, evaluated = told(paths)
    assert (
        (phase["kind"], phase["phase"]) == ("phase", "train")
        and log["step"] == 3
        and log["metrics"]["loss"] == 0.5
        and "note" not in log["metrics"]
    )
    assert (
        0 < log["metrics"]["system/system_memory_usage_percentage"] <= 100
        and log["metrics"]["system/process_memory_megabytes"] > 10
    )
    assert evaluated["metrics"] == {"eval_loss": 0.25}, "the load stands beside training figures alone"


def test_the_load_of_each_node_is_logged_by_the_first_rank(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(global_step=3, epoch=0.5)
    for rank, host in ((4, "b"), (8, "c"), (12, "c")):
        monkeypatch.setattr(node_load.socket, "gethostname", lambda host=host: host)
        other = node_load.LoadOfNode(paths.nodes, rank)
        other.on_log(None, state, None, logs={"eval_loss": 1.0})
        assert not (paths.nodes / f"rank-{rank}.json").exists()
        other.on_log(None, state, None, logs={"loss": 1.0})
    gone = json.loads((paths.nodes / "rank-4.json").read_text())
    (paths.nodes / "rank-20.json").write_text(json.dumps({**gone, "host": "gone", "time": gone["time"] - 1000}))
    (paths.nodes / "rank-24.json").write_text('{"host": "half')
    monkeypatch.setattr(node_load.socket, "gethostname", lambda: "a")
    callback = EventCallback(EventLog(paths.events), paths.progress, paths.nodes, 10)
    callback.on_log(None, state, None, logs={"loss": 0.5})
    (log,) = told(paths)
    memory = {name.split("/")[-2] for name in log["metrics"] if name.endswith("system_memory_usage_percentage")}
    assert memory == {"system", "b", "c", "c-rank-8"}, "neither of a node that is gone, nor half a file"
    assert all(log["metrics"][f"system/{host}process_memory_megabytes"] > 0 for host in ("", "b/", "c/", "c-rank-8/"))


def test_progress_is_shown_twice_a_second_and_at_the_end(paths: RunPaths, clock: Clock) -> None:
    callback = EventCallback(EventLog(paths.events), paths.progress, paths.nodes, 5)
    callback.on_log(
        None,
        SimpleNamespace(global_step=1),
        None,
        logs={"loss": 2.0, "tokens_per_second": 7.0, "mfu": 0.25, "grad_norm": 1.0},
    )
    seen = []
    for step in range(1, 6):
        clock.now += 0.3
        callback.on_step_end(None, SimpleNamespace(global_step=step, epoch=step / 5), None)
        seen.append(json.loads(paths.progress.read_text())["step"])
    assert seen == [1, 1, 3, 3, 5]
    assert json.loads(paths.progress.read_text()) == {
        "step": 5,
        "total": 5,
        "epoch": 1.0,
        "loss": 2.0,
        "tokens_per_second": 7.0,
        "mfu": 0.25,
    }
    assert [event["step"] for event in told(paths) if event.get("phase") == "first step"] == [1]


def test_an_evaluation_shows_how_far_it_is(paths: RunPaths, clock: Clock) -> None:
    callback = EvalProgress(paths.progress, 4)
    seen = []
    for _ in range(4):
        callback.on_prediction_step(None, None, None)
        clock.now += 0.3
        seen.append(json.loads(paths.progress.read_text()))
    assert [one["step"] for one in seen] == [1, 1, 3, 4] and seen[-1]["total"] == 4


def test_the_time_of_a_step_is_without_evaluations_checkpoints_and_the_first_one(clock: Clock) -> None:
    callback, state = ClockCallback(), SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None)
    for seconds, event in [
        (100, None),
        (2, "on_save"),
        (2, "on_evaluate"),
        (2, "on_prediction_step"),
        (2, "on_epoch_begin"),
    ]:
        clock.now += seconds
        state.global_step += 1
        callback.on_step_end(None, state, None)
        if event:
            clock.now += 50
            getattr(callback, event)(None, state, None)
    assert progress.CLOCK.median == 2 and progress.CLOCK.step == 5 and list(progress.CLOCK.seconds) == [2, 2, 2, 2]


def test_layers_are_drawn_by_the_step_and_stale_gradients_are_zero() -> None:
    begun: list[int] = []
    inner = SimpleNamespace(grad_partitions_flat_buffer=torch.ones(3))
    callback = LayerdropCallback(SimpleNamespace(begin=begun.append))  # type: ignore[arg-type]
    callback.on_step_begin(None, SimpleNamespace(global_step=7), None, optimizer=SimpleNamespace(optimizer=inner))
    assert begun == [7] and inner.grad_partitions_flat_buffer.tolist() == [0, 0, 0]


# what is opened is let go of


def test_after_a_good_end_what_fails_is_told_and_after_an_error_the_error_is() -> None:
    """The user would read that a file cannot be closed, and not that the GPU has no memory left."""
    done: list[str] = []

    def fails() -> None:
        done.append("fails")
        raise OSError("cannot be closed")

    def last() -> None:
        done.append("last")

    with pytest.raises(OSError, match="cannot be closed"), contextlib.ExitStack() as stack:
        stack.push(letting_go(fails))
    with pytest.raises(ValueError, match="the real one"), contextlib.ExitStack() as stack:
        stack.push(letting_go(fails, last))
        raise ValueError("the real one")
    assert done == ["fails", "fails", "last"]


def test_all_a_rank_says_is_in_its_own_log_and_nothing_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rank_log(tmp_path / "logs", 3):
        print("printed")
        print("an error", file=sys.stderr)
        logging.getLogger("transformers.trainer").error("told by a logger")
        logging.getLogger("my.trainer").info("of the user's own module")
        logging.getLogger("my.trainer").debug("more than was asked for")
    with rank_log(tmp_path / "logs", 3):
        print("a second run")
    for name in ("transformers.trainer", "my.trainer"):
        logging.getLogger(name).error("outside")
    print("outside, too")
    text = (tmp_path / "logs" / "rank-3.log").read_text()
    assert text.count("INFO my.trainer: of the user's own module") == 1 and "more than" not in text
    assert text.count("told by a logger") == 1, "once, whether or not the library passes it on to the root"
    assert (
        all(
            part in text
            for part in ("printed", "an error", "ERROR transformers.trainer: told by a logger", "a second run")
        )
        and "outside" not in text
    )
    assert "outside, too" in capsys.readouterr().out


# notice to leave


class Heard(EventLog):
    """An event log that says when a notice has been written."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.notice = threading.Event()

    def write(self, kind: str, **fields: Any) -> None:
        super().write(kind, **fields)
        if kind == "notice":
            self.notice.set()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Nodes that are being drained, of three ranks on `aaaa...`, `bbbb...` and `bbbb...`."""
    draining: dict[str, int] = {}
    monkeypatch.setattr(preemption, "draining_nodes", lambda tell: dict(draining))
    monkeypatch.setattr(preemption, "gather_objects", lambda node: ["a" * 56, "b" * 56, "b" * 56])
    monkeypatch.setattr(Folder, "poll_s", 0.001)
    return draining


def test_a_node_of_a_rank_that_is_taken_back_is_noticed(paths: RunPaths, nodes: dict[str, int]) -> None:
    events = Heard(paths.events)
    nodes |= {"c" * 56: 0}
    with noticed(paths, events, 0) as given:
        assert not given()
        nodes["b" * 56] = int((time.time() + 120) * 1000)
        assert events.notice.wait(20) and given()
    (notice,) = [event["text"] for event in told(paths)]
    assert notice.startswith("node bbbbbbbb of rank 1 is to go within 1") and notice.endswith(
        "a checkpoint is committed, and the run goes on from it."
    )


@pytest.mark.parametrize(("then_end", "words"), [(False, "the run goes on from it."), (True, "the run ends.")])
def test_the_drivers_word_is_heard(paths: RunPaths, nodes: dict[str, int], then_end: bool, words: str) -> None:
    events = Heard(paths.events)
    with noticed(paths, events, 0) as given:
        ask_to_move(paths, "stopped", then_end)
        assert events.notice.wait(20) and given()
    assert told(paths)[0]["text"] == f"stopped: a checkpoint is committed, and {words}"


def test_what_an_earlier_driver_asked_for_is_forgotten_but_not_its_end(paths: RunPaths, nodes: dict[str, int]) -> None:
    """A run that is taken up again would move at its first step, for ever; one that is to end must not go on with new
    workers.
    """
    ask_to_move(paths, "a better place")
    with noticed(paths, EventLog(paths.events), 0):
        assert not paths.move.exists()
    ask_to_move(paths, "stopped", then_end=True)
    with noticed(paths, Heard(paths.events), 1) as given:
        assert not given(), "the first rank looks for all"
    with noticed(paths, events := Heard(paths.events), 0) as given:
        assert events.notice.wait(20) and given()


# one run after the other


class Mailbox:
    """The mailbox of a pool, with the answers Ray would bring; what is asked of it is called at once."""

    def __init__(self, specs: list[Any], stop: bool = False):
        self.specs, self.finished, self._stop = specs, [], stop
        for name in ("next", "finish", "stop_asked"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    def _next(self, pool: str, rank: int, done: int) -> Any:
        return (done + 1, self.specs[done + 1]) if done + 1 < len(self.specs) else None

    def _finish(self, pool: str, number: int, rank: int, world_size: int, result: Any, memory: int) -> None:
        self.finished.append((pool, number, rank, world_size, result))

    def _stop_asked(self, pool: str, number: int) -> bool:
        return self._stop


def test_a_worker_that_stays_is_after_each_run_as_it_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial would train with the number of threads, the determinism or the environment of the one before it."""
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    threads, seen = torch.get_num_threads(), []

    def run(spec: Any, body: Any) -> dict[str, Any]:
        seen.append(
            (
                torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(),
                os.environ.get("OF_A_TRIAL"),
                os.environ.get("RANK"),
            )
        )
        torch.set_num_threads(threads + 1)
        torch.use_deterministic_algorithms(True)
        os.environ["OF_A_TRIAL"] = spec
        os.environ["RANK"] = "7"
        return {"result": spec}

    collected: list[int] = []
    monkeypatch.setattr(pool_worker, "gc", SimpleNamespace(collect=lambda: collected.append(1)))
    monkeypatch.setattr(pool_worker, "run_guarded", run)
    mailbox = Mailbox(["a", "b", "c"])
    assert run_pool_worker({"mailbox": mailbox, "pool": "s"}) == {} and len(collected) == 3
    assert seen == [(threads, False, None, "1")] * 3 and "OF_A_TRIAL" not in os.environ
    assert mailbox.finished == [("s", number, 1, 2, {"result": name}) for number, name in enumerate("abc")]


@pytest.mark.parametrize(("rank", "asked", "expected"), [("0", True, True), ("1", True, False), ("0", False, False)])
def test_the_first_rank_hears_that_its_run_is_to_stop(
    monkeypatch: pytest.MonkeyPatch, rank: str, asked: bool, expected: bool
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(ray, "get", lambda value: (answered.set() if value is asked else None, value)[1])
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(pool_worker, "gc", SimpleNamespace(collect=lambda: None))
    heard: list[bool] = []

    def run(spec: Any, body: Any) -> dict[str, Any]:
        stop = body.keywords["stop_asked"]
        deadline = time.monotonic() + (20 if expected else 0)
        while not stop() and time.monotonic() < deadline:
            answered.wait(1)
        heard.append(stop())
        return {}

    monkeypatch.setattr(pool_worker, "run_guarded", run)
    run_pool_worker({"mailbox": Mailbox(["a"], stop=asked), "pool": "s"})
    assert heard == [expected]


def test_a_spec_comes_to_its_workers_as_it_was_and_none_changes_it(tmp_path: Path) -> None:
    """What is not plain would be another object on each node, or need its module there."""
    split: Any = SimpleNamespace  # stands for a SplitSpec, which has tests of its own
    spec = WorkerSpec(
        load_job(plain_job(tmp_path, "x")),
        str(tmp_path),
        "x",
        "tokenizer",
        ["a", "b"],
        split,
        None,
        10,
        30,
        2,
        "data",
        {"torch": "2"},
        False,
        "/code",
    )
    arrived = pickle.loads(pickle.dumps(spec))
    assert arrived == spec and arrived.job == load_job(plain_job(tmp_path, "x"))
    assert (arrived.exports, arrived.renew_hyperparameters, arrived.driver, arrived.named_validations) == (
        True,
        False,
        0,
        {},
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.total_steps = 31  # type: ignore[misc]


# scoring


class Task:
    """Two classes; a row is right where prediction and truth agree."""

    joins_rows = False

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        yield from (
            {"predicted": labels[guess], "right": bool(guess == true)}
            for guess, true in zip(predictions, truth, strict=True)
        )

    def build_report(self, predictions: Any, truth: Any, labels: list[str]) -> dict[str, Any]:
        return {"right": int((predictions == truth).sum())}


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def run(rank: int = 0, keep_rows: bool = True, fails: Exception | None = None) -> dict[str, Any]:
        def evaluate() -> dict[str, float]:
            if fails:
                raise fails
            return {"eval_loss": 0.5, "epoch": 1.0}

        found = {"": (np.array([0, 1, 1]), np.array([0, 1, 0]))} if rank == 0 else {}
        trainer = SimpleNamespace(evaluate=evaluate, _feed=SimpleNamespace(scored=found), processing_class=None)
        monkeypatch.setattr(scoring, "_build_trainer", lambda *_: (trainer, Task()))
        monkeypatch.setattr(
            scoring, "Split", lambda spec: SimpleNamespace(locate=lambda row: f"dir:1/v.jsonl:{row + 10}")
        )
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        validation: Any = None
        spec = ScoringSpec(
            load_job(plain_job(tmp_path, "x")),
            str(tmp_path),
            "scored",
            str(tmp_path / "model"),
            "tokenizer",
            ["no", "yes"],
            validation,
            1,
            "",
            keep_rows,
        )
        (tmp_path / "scored").mkdir(exist_ok=True)
        return run_scoring({"spec": spec})

    return run


def test_scoring_gives_figures_a_report_and_a_line_for_each_row(
    tmp_path: Path, score: Callable[..., dict[str, Any]]
) -> None:
    assert score() == {"result": {"metrics": {"eval_loss": 0.5}, "report": {"right": 2}}}
    rows = [json.loads(line) for line in (tmp_path / "scored" / SCORES).read_text().splitlines()]
    assert rows[0] == {"row": 0, "source": "dir:1/v.jsonl", "line": 10, "predicted": "no", "right": True}
    assert [row["right"] for row in rows] == [True, True, False] and [row["line"] for row in rows] == [10, 11, 12]


def test_other_ranks_give_figures_alone_and_rows_are_kept_on_request(
    tmp_path: Path, score: Callable[..., dict[str, Any]]
) -> None:
    assert score(rank=1) == {"result": {"metrics": {"eval_loss": 0.5}}}
    assert "report" in score(keep_rows=False)["result"] and not (tmp_path / "scored" / SCORES).exists()


def test_what_all_ranks_see_alike_is_returned_and_not_raised(score: Callable[..., dict[str, Any]]) -> None:
    """Raised it would start the workers again, to the same end."""
    outcome = score(fails=InputError([]))
    assert isinstance(outcome["error"], InputError)


# what is sent back


def test_in_a_shared_folder_the_first_rank_writes_where_the_driver_reads(paths: RunPaths) -> None:
    for rank in (0, 1):
        with event_log(paths, 3, rank) as (events, flush):
            events.write("notice", text=f"rank {rank}")
            flush()
    assert [event["text"] for event in told(paths)] == ["rank 0"]
    with errors_of_before(paths, 1):
        pass
    paths.model.mkdir()
    send_results(paths, paths.quarantine)
    assert not paths.quarantine.exists(), "nothing is made that was not there"


def test_in_object_storage_each_start_has_events_of_its_own_which_are_there_after_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, paths = use_fake_bucket(monkeypatch), RunPaths(open_storage("s3://bucket/runs", tmp_path), "run")
    for driver in (1, 2):
        with event_log(paths, driver, 0) as (events, flush):
            events.write("notice", text=f"driver {driver}")
            paths.progress.write_text("{}")
            flush()
            assert any(f"driver {driver}".encode() in text for text, _ in bucket.objects.values())
            assert "runs/run/progress.json" in bucket.objects
            events.write("notice", text="the last word")
    sent = {key: text for key, (text, _) in sorted(bucket.objects.items()) if "/events/" in key}
    assert [key.rpartition("/")[2][:5] for key in sent] == ["0001-", "0002-"] and not paths.events.exists()
    assert all(b"the last word" in text.splitlines()[-1] for text in sent.values())


def test_a_log_that_cannot_be_sent_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("away")

    bucket, paths = use_fake_bucket(monkeypatch), RunPaths(open_storage("s3://bucket/runs", tmp_path), "run")
    names = ("failure.json", "feed_error.json", "logs/rank-2.log")
    bucket.objects = {f"runs/run/{name}": (b"of before", 0.0) for name in names}
    monkeypatch.setattr(bucket, "put", refuse)
    with pytest.raises(ValueError, match="the real one"), errors_of_before(paths, 2):
        raise ValueError("the real one")
    assert bucket.read == [f"runs/run/{name}" for name in names]
