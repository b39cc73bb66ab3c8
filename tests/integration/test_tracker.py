"""The tracker alone: every figure reaches MLflow once, whatever the tracker, its database or its server do
meanwhile.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from support import wait_until

from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.tracking.events import EventLog, read_events
from raytrain_nlp.tracking.tracker import Tracker

LOCKED_S = 30
PATIENT_S = 120  # for trackers that must succeed, on a machine however busy
FOLLOW = """
import sys, time
from pathlib import Path
from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.tracking.tracker import Tracker
from raytrain_nlp.redaction import masked_address
Tracker(RunPaths(sys.argv[1], "run"), TrackingConfig(tracking_uri=sys.argv[2]), {"a": 1}, "name: run", print).start()
time.sleep(600)
"""
Figures = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tracker sets for its process is taken back; a server's silence is noticed after one second, not ten."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment(
        "raytrain_nlp", artifact_location=path.parent.joinpath("artifacts").as_uri()
    )
    return path


class Bench:
    """A run's files, its events, a database, and what a tracker has put into it."""

    def __init__(self, folder: Path, template: Path):
        self.paths = RunPaths(folder, "run")
        self.paths.run.mkdir(parents=True)
        self.database = Path(shutil.copy(template, folder / "mlflow.db"))
        self.uri = f"sqlite:///{self.database}"
        self.log = EventLog(self.paths.events)
        self.warnings: list[str] = []
        self.slowest = 0.0

    def tracker(
        self, uri: str | None = None, timeout_s: float = PATIENT_S, params: dict[str, Any] | None = None, **config: Any
    ) -> Tracker:
        settings = TrackingConfig(tracking_uri=uri or self.uri, close_timeout_s=timeout_s, **config)
        return Tracker(self.paths, settings, params or {"a": 1}, "name: run\n", self.warnings.append).start()

    def write(self, *steps: int, scale: float = 1.0) -> None:
        """Two figures for each step."""
        for step in steps:
            started = time.monotonic()
            self.log.write("log", step=step, metrics={"loss": scale / (step + 1), "epoch": step / 10})
            self.slowest = max(self.slowest, time.monotonic() - started)

    def wait_shipped(self) -> None:
        """Wait until the tracker says it has shipped all events there are."""
        size = self.paths.events.stat().st_size
        wait_until(
            lambda: json.loads(self.paths.tracking.read_text())["offset"] == size, PATIENT_S, "all events are shipped"
        )

    def figures(self) -> Figures:
        """What MLflow holds, in the order it holds it; there must be one run only."""
        client, run = MlflowClient(tracking_uri=self.uri), self.run()
        return {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }

    def run(self) -> Any:
        client = MlflowClient(tracking_uri=self.uri)
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert len(runs) == 1
        return runs[0]


@pytest.fixture
def bench(tmp_path: Path, template: Path) -> Bench:
    return Bench(tmp_path, template)


def expected(*steps: int, scale: float = 1.0) -> Figures:
    return {"loss": [(step, scale / (step + 1)) for step in steps], "epoch": [(step, step / 10) for step in steps]}


def assert_threads_end() -> None:
    wait_until(
        lambda: not any(thread.name == "tracker" for thread in threading.enumerate()),
        PATIENT_S,
        "the tracker's thread ends",
    )


def test_every_figure_arrives_once_while_the_run_goes_on(bench: Bench) -> None:
    """Figures written before, during and just before the end are in MLflow once and in order, with parameters, tags and
    the job.
    """
    bench.write(0, 1)
    tracker = bench.tracker(params={"a": 1, "training.learning_rate": 2e-5}, tags={"team": "nlp"})
    bench.write(*range(2, 600))
    bench.wait_shipped()
    assert bench.figures() == expected(*range(600))  # not only at the end: more than one batch of it
    bench.log.write("notice", text="no figure")
    bench.write(*range(600, 640))
    assert tracker.close("FINISHED") is True
    run = bench.run()
    assert bench.figures() == expected(*range(640))
    assert (run.info.run_id, run.info.status, run.info.run_name) == (tracker.run_id, "FINISHED", "run")
    assert run.data.params == {"a": "1", "training.learning_rate": "2e-05"}
    assert (run.data.tags["team"], run.data.tags["raytrain_nlp.run_dir"]) == ("nlp", str(bench.paths.run))
    artifact = Path(
        MlflowClient(tracking_uri=bench.uri).download_artifacts(run.info.run_id, "job.yaml", str(bench.paths.run))
    )
    assert artifact.read_text() == "name: run\n"
    assert bench.warnings == []
    assert_threads_end()


def test_repeated_steps_of_a_restarted_worker_are_no_duplicates(bench: Bench) -> None:
    """A worker group that restarts at a checkpoint writes its steps again: each step stays once, with its first figure,
    steps rising.
    """
    tracker = bench.tracker()
    bench.write(*range(10))
    bench.wait_shipped()
    bench.write(*range(4, 15), scale=2.0)  # in later polls, and below within one
    bench.write(*range(12, 18), scale=3.0)
    bench.log.write("log", step=9, metrics={"eval_loss": 0.5})  # a figure that step 9 never had
    assert tracker.close("FINISHED") is True
    figures = bench.figures()
    assert [step for step, _ in figures["loss"]] == list(range(18))
    assert figures["loss"][:10] == expected(*range(10))["loss"]
    assert figures["loss"][10:15] == expected(*range(10, 15), scale=2.0)["loss"]
    assert figures["loss"][15:] == expected(*range(15, 18), scale=3.0)["loss"]
    assert figures["eval_loss"] == [(9, 0.5)]


def test_driver_killed_while_it_ships_continues_the_same_run(bench: Bench, tmp_path: Path) -> None:
    """After SIGKILL of the driver, and a state older than what was sent, the next driver's tracker adds what is missing
    and no more.
    """
    bench.write(*range(100))
    driver = subprocess.Popen([sys.executable, "-c", FOLLOW, str(tmp_path), bench.uri])
    try:
        wait_until(bench.paths.tracking.exists, PATIENT_S, "the driver's tracker is up")
        bench.wait_shipped()
        earlier = bench.paths.tracking.read_text()
        bench.write(*range(100, 200))
        bench.wait_shipped()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    first = bench.run().info
    assert first.status == "RUNNING"
    bench.paths.tracking.write_text(earlier)  # as if it had been killed between the sending and the noting
    bench.write(*range(200, 230))
    tracker = bench.tracker(params={"a": 2})  # a parameter that resuming may change must not hold the figures up
    assert tracker.close("FINISHED") is True
    assert tracker.run_id == first.run_id
    assert bench.figures() == expected(*range(230))
    assert (bench.run().info.status, bench.run().data.params) == ("FINISHED", {"a": "1"})


def test_run_made_just_before_a_kill_is_found_again(bench: Bench) -> None:
    """A run that MLflow made but whose id was never noted is found by its mark, although a parameter has changed
    since.
    """
    tracker = bench.tracker(params={"a": 1})
    bench.write(0)
    assert tracker.close("KILLED") is True
    state = json.loads(bench.paths.tracking.read_text())
    bench.paths.tracking.write_text(json.dumps({**state, "run_id": None, "offset": 0, "last_step": {}}))
    bench.write(1)
    again = bench.tracker(params={"a": 2, "b": 3})
    assert again.close("FINISHED") is True
    assert again.run_id == tracker.run_id
    assert bench.figures() == expected(0, 1)
    assert bench.run().data.params == {"a": "1", "b": "3"}
    assert bench.warnings == []


def test_dropped_tracker_beside_a_new_one_does_no_harm(bench: Bench) -> None:
    """A tracker never closed and a second one on the same files ship to the same run, nothing twice."""
    old = bench.tracker()
    bench.write(*range(20))
    bench.wait_shipped()
    new = bench.tracker()
    bench.write(*range(20, 60))
    assert new.close("FINISHED") is True
    assert new.run_id == old.run_id
    assert bench.figures() == expected(*range(60))
    assert old.close("FINISHED") is True
    assert bench.figures() == expected(*range(60))


def test_locked_database_delays_figures_and_loses_none(bench: Bench) -> None:
    """While another connection locks the database for half a minute, writing events waits for nothing; then each figure
    is there once.
    """
    tracker = bench.tracker()
    bench.write(*range(5))
    bench.wait_shipped()
    lock = sqlite3.connect(bench.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    released = time.monotonic() + LOCKED_S
    step = 5
    while time.monotonic() < released:
        bench.write(step)
        step += 1
        time.sleep(0.1)
    assert step > 10
    assert bench.slowest < LOCKED_S / 3
    state = json.loads(bench.paths.tracking.read_text())
    lock.execute("ROLLBACK")
    lock.close()
    assert state["offset"] < bench.paths.events.stat().st_size  # it did have to wait
    bench.write(step)
    assert tracker.close("FINISHED") is True
    assert bench.figures() == expected(*range(step + 1))
    assert len(bench.warnings) <= 1


def test_close_waits_no_longer_than_it_may(bench: Bench) -> None:
    """A database that stays locked at the end costs the close timeout and a warning; the figures are there after the
    next start.
    """
    tracker = bench.tracker(timeout_s=2)
    bench.write(*range(3))
    bench.wait_shipped()
    lock = sqlite3.connect(bench.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    bench.write(3)
    started = time.monotonic()
    assert tracker.close("FINISHED") is False
    assert 2 <= time.monotonic() - started < 5
    assert [str(bench.paths.events) in line for line in bench.warnings] == [True]
    lock.execute("ROLLBACK")
    lock.close()
    assert bench.tracker().close("FINISHED") is True
    assert bench.figures() == expected(*range(4))
    assert_threads_end()


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a port that nobody listens on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refusing", "hanging"])
def test_server_that_is_not_there_costs_no_figure_and_no_time(
    bench: Bench, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused or never answered: events are written on, one warning is told however many tries fail, the close is in
    time.

    A later tracker with a working address ships every figure once. The given-up one writes nothing any more, and no
    password is told.
    """
    tries: list[float] = []
    ship: Callable[[Tracker], None] = Tracker._ship
    monkeypatch.setattr(Tracker, "_ship", lambda tracker: (tries.append(time.monotonic()), ship(tracker))[1])
    uri = f"http://ada:love%40lace@{request.getfixturevalue(kind)}"
    tracker = bench.tracker(uri, timeout_s=2)
    step = 0
    while len(tries) < 3:
        bench.write(step)
        step += 1
        time.sleep(0.05)
    assert len(bench.warnings) == 1
    assert bench.slowest < 5
    assert tracker.run_id is None
    started = time.monotonic()
    assert tracker.close("FINISHED") is False
    assert time.monotonic() - started < 2 + 3
    assert len(bench.warnings) == 2
    assert str(bench.paths.events) in bench.warnings[1]
    told = "\n".join(bench.warnings) + bench.paths.tracking.read_text()
    assert "fails: " in told and "***@127.0.0.1" in told
    assert not any(secret in told for secret in ("love%40lace", "love@lace", "lace", "ada"))
    before = bench.paths.tracking.read_text()
    assert_threads_end()
    assert bench.paths.tracking.read_text() == before
    later = bench.tracker()
    bench.write(step)
    assert later.close("FINISHED") is True
    assert bench.figures() == expected(*range(step + 1))
    assert len(bench.warnings) == 2


def test_server_that_comes_back_gets_everything(bench: Bench, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker could not send is sent by itself once the server is there, without a restart; a second outage is
    told again.
    """
    real = bench.uri
    tracker = bench.tracker(f"http://{refusing}")
    bench.write(*range(5))
    wait_until(lambda: len(bench.warnings) == 1, PATIENT_S, "the outage is told")
    tracker.uri = real  # the server is back
    bench.wait_shipped()
    bench.write(*range(5, 8))
    assert tracker.close("FINISHED") is True
    assert bench.figures() == expected(*range(8))
    assert len(bench.warnings) == 1


DATASETS = [
    {
        "split": split,
        "context": context,
        "name": f"{split}.jsonl",
        "digest": split[:4] * 4,
        "source_type": "local",
        "source": {"uri": f"/data/{split}.jsonl"},
        "profile": {"num_rows": rows},
    }
    for split, context, rows in (("train", "training", 100), ("validation", "validation", 20))
]


def write_run(bench: Bench) -> None:
    """Events of a run: its data, two evaluations with a checkpoint each of which one is kept, the exported model."""
    bench.log.write("datasets", datasets=DATASETS)
    bench.log.write("log", step=0, metrics={"data/rows/train": 100})
    for step in (2, 4):
        bench.write(step - 1, step)
        bench.log.write("log", step=step, metrics={"eval_loss": 1 / step, "system/memory": 5})
        bench.log.write("checkpoint", step=step, seconds=0.1, kept=[step])
    bench.log.write("model", step=4, task="masked-lm")


def logged_models(bench: Bench) -> dict[str, Any]:
    """By name; each must be there once."""
    client, run = MlflowClient(tracking_uri=bench.uri), bench.run()
    found = list(client.search_logged_models([run.info.experiment_id]))
    assert len(found) == len({model.name for model in found})
    assert {output.model_id for output in run.outputs.model_outputs} == {model.model_id for model in found}
    assert len(run.outputs.model_outputs) == len(found) and {model.source_run_id for model in found} <= {
        run.info.run_id
    }
    return {model.name: model for model in found}


def test_checkpoints_and_model_have_the_figures_of_their_step_once(bench: Bench) -> None:
    """Also after a kill at any moment between the sending and the noting; MLflow gets no copy of the weights."""
    write_run(bench)
    tracker = bench.tracker()
    assert tracker.close("FINISHED") is True
    state = json.loads(bench.paths.tracking.read_text())
    for _ in range(2):
        models = logged_models(bench)
        assert {name: (model.model_type, str(model.status)) for name, model in models.items()} == {
            "checkpoint-2": ("checkpoint", "READY"),
            "checkpoint-4": ("checkpoint", "READY"),
            "model": ("masked-lm", "READY"),
        }
        for name, step in {"checkpoint-2": 2, "checkpoint-4": 4, "model": 4}.items():
            figures = {metric.key: (metric.value, metric.step) for metric in models[name].metrics}
            assert figures == {
                "loss": (1 / (step + 1), step),
                "epoch": (step / 10, step),
                "eval_loss": (1 / step, step),
            }
            (scored,) = [metric for metric in models[name].metrics if metric.key == "eval_loss"]
            assert (scored.dataset_name, scored.dataset_digest) == ("validation.jsonl", "vali" * 4)
        assert models["checkpoint-2"].tags["raytrain_nlp.kept"] == "false"
        assert "raytrain_nlp.kept" not in models["checkpoint-4"].tags
        folders = {name: model.tags["raytrain_nlp.path"] for name, model in models.items()}
        assert folders["checkpoint-4"] == str(bench.paths.checkpoints / "checkpoint-4")
        assert folders["model"] == str(bench.paths.model)
        assert bench.figures() == {
            **expected(1, 2, 3, 4),
            "eval_loss": [(2, 0.5), (4, 0.25)],
            "system/memory": [(2, 5), (4, 5)],
        }
        inputs = {given.tags[0].value: given.dataset for given in bench.run().inputs.dataset_inputs}
        assert {context: data.name for context, data in inputs.items()} == {
            "training": "train.jsonl",
            "validation": "validation.jsonl",
        }
        assert (
            json.loads(inputs["training"].profile) == {"num_rows": 100} and len(bench.run().inputs.dataset_inputs) == 2
        )
        bench.paths.tracking.write_text(json.dumps({**state, "offset": 0, "models": {}, "datasets": {}}))
        assert bench.tracker().close("FINISHED") is True
    assert bench.warnings == []


@pytest.mark.parametrize(("code", "tries"), [("ENDPOINT_NOT_FOUND", 1), ("INTERNAL_ERROR", 3)])
def test_an_mlflow_without_logged_models_costs_a_line_and_no_figure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: str, tries: int
) -> None:
    """Refused, or never taken: told once of each kind, and the figures are sent."""
    asked: list[str] = []

    def refuse(self: Any, *arguments: Any, **named: Any) -> None:
        asked.append("models")
        error = MlflowException("there is no such thing here\nmore")
        error.error_code = code
        raise error

    for name in ("search_logged_models", "create_logged_model", "log_inputs"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    monkeypatch.setattr("raytrain_nlp.tracking.tracker._POLL_S", 0.01)
    write_run(bench)
    bench.write(5)
    assert bench.tracker().close("FINISHED") is True
    assert bench.figures()["loss"] == expected(1, 2, 3, 4, 5)["loss"]
    left_out = [line for line in bench.warnings if "does not take" in line]
    assert [line.partition("does not take ")[2].partition(":")[0] for line in left_out] == [
        "data sets", "checkpoints as logged models", "the model as a logged model",
    ]  # fmt: skip
    assert len(asked) == 3 * tries and all("there is no such thing here." in line for line in left_out)


def test_who_ran_what_is_said_and_runs_open_where_models_are_trained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/raytrain-nlp", "--set", "token=secret"])
    assert bench.tracker().close("FINISHED") is True
    tags = bench.run().data.tags
    assert tags["mlflow.user"] == "ada" and tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"] == "/usr/bin/raytrain-nlp" and "secret" not in str(tags)
    client = MlflowClient(tracking_uri=bench.uri)
    experiment = client.get_experiment(bench.run().info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "genai_development")
    bench.paths.tracking.unlink()
    assert bench.tracker().close("FINISHED") is True
    kept = client.get_experiment(experiment.experiment_id).tags["mlflow.experimentKind"]
    assert kept == "genai_development", "what its owner says stays"


def test_events_behind_the_end_are_sent_and_are_no_silence(bench: Bench) -> None:
    """Workers of a trial that its sweep has stopped write on for a moment after its tracker was told to end."""
    tracker = bench.tracker()
    bench.write(0)
    tracker.finish("KILLED")
    wait_until(lambda: not tracker._thread.is_alive(), PATIENT_S, "the run is ended, and its thread")
    assert bench.run().info.status == "KILLED"
    bench.write(1, 2)
    assert tracker.close("KILLED") is True and bench.warnings == []
    assert bench.figures() == expected(0, 1, 2) and bench.run().info.status == "KILLED"
    assert_threads_end()


def test_a_lock_that_passes_is_not_told_and_one_that_lasts_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ship: Callable[[Tracker], None] = Tracker._ship
    locked = [1]

    def fail(tracker: Tracker) -> None:
        if locked:
            locked.pop()
            raise MlflowException("(sqlite3.OperationalError) database is locked")
        ship(tracker)

    monkeypatch.setattr(Tracker, "_ship", fail)
    bench.write(0)
    assert bench.tracker().close("FINISHED") is True and bench.warnings == []
    locked.extend([1, 1, 1])
    bench.write(1)
    assert bench.tracker().close("FINISHED") is True
    assert len(bench.warnings) == 1 and "database is locked" in bench.warnings[0]
    assert bench.figures() == expected(0, 1)


def test_names_that_mlflow_refuses_hold_nothing_up(bench: Bench) -> None:
    """A figure, tag or parameter with a name MLflow does not take (`recall@10`) is renamed; all others arrive as they
    are.
    """
    odd = {"eval_recall@10": 0.5, "/slash": 1.0, "a//b": 2.0, "../up": 3.0, "x" * 300: 4.0, "p(y|x)": 5.0}
    tracker = bench.tracker(
        params={"model.config.id2label@": "x", "b" * 300: "y" * 9000}, tags={"owner@home": "me" * 9000}
    )
    for step in range(3):
        bench.log.write("log", step=step, metrics={**odd, "loss": 1.0 / (step + 1)})
    assert tracker.close("FINISHED") is True
    figures = bench.figures()
    assert figures["loss"] == expected(*range(3))["loss"]
    assert figures["eval_recall_10"] == [(step, 0.5) for step in range(3)]
    assert len(figures) == 1 + len(odd)
    assert sorted(history[0][1] for key, history in figures.items() if key != "loss") == sorted(odd.values())
    run = bench.run()
    assert run.data.params["model.config.id2label_"] == "x"
    assert run.data.tags["owner_home"].startswith("meme")
    assert bench.warnings == []


def test_unfinished_and_damaged_lines_are_passed_over(bench: Bench) -> None:
    """A line that a killed writer left open, a damaged one, and figures that are no numbers cost nothing but
    themselves.
    """
    tracker = bench.tracker()
    bench.write(0)
    with bench.paths.events.open("a") as file:
        file.write('{"kind": "log", "step": 1, "metr')
    again = EventLog(bench.paths.events)  # the restarted worker's
    again.write(
        "log",
        step=2,
        metrics={"loss": 1 / 3, "epoch": 0.2, "grad_norm": float("nan"), "best": float("inf"), "name": "x"},
    )
    with bench.paths.events.open("a") as file:
        file.write("[1]\nnonsense\n")
    bench.write(3)
    assert tracker.close("FINISHED") is True
    assert bench.figures() == expected(0, 2, 3)
    assert [event["step"] for event, _ in read_events(bench.paths.events)] == [0, 2, 3]


def test_offsets_of_events_are_where_reading_goes_on(tmp_path: Path) -> None:
    """Reading from the offset behind any event gives exactly the events behind it; an unfinished last line is not read
    until it ends.
    """
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(5):
        log.write("log", step=step, metrics={"text": "ü\n" * step})
    all_events = list(read_events(tmp_path / "events.jsonl"))
    assert [event["step"] for event, _ in all_events] == list(range(5))
    for number, (_, offset) in enumerate(all_events):
        assert list(read_events(tmp_path / "events.jsonl", offset)) == all_events[number + 1 :]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "log"')
        file.flush()
        assert list(read_events(tmp_path / "events.jsonl", all_events[-1][1])) == []
        file.write("}\n")
    assert [event for event, _ in read_events(tmp_path / "events.jsonl", all_events[-1][1])] == [{"kind": "log"}]
    assert list(read_events(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://user:secret@host/path", "https://***@host/path"),
        ("https://token@host", "https://***@host"),
        ("postgresql+psycopg2://u:p%40w@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        ("mysql://u:p/w@db/mlflow", "mysql://***@db/mlflow"),
        ("postgresql://db/mlflow?user=u&password=secret&x=1", "postgresql://db/mlflow?user=u&password=***&x=1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_address_is_shown_without_its_password(uri: str, shown: str) -> None:
    """Of an address everything is shown but who logs in and with what."""
    assert masked_address(uri) == shown
