"""Parts of the tracker: how long its end is waited for, what MLflow's refusals mean, what is said of a run's data."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import plain_job

from raytrain_nlp.config import load_job
from raytrain_nlp.config.cluster import TrackingConfig
from raytrain_nlp.data.reading.sources import SourceFile
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.tracking import mlflow_run, patience, tracker
from raytrain_nlp.tracking.accepted import is_locked, is_refusal
from raytrain_nlp.tracking.address import reason_of
from raytrain_nlp.tracking.attachments import Attachments
from raytrain_nlp.tracking.datasets import describe_datasets
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.tracking.logged_models import figures_of
from raytrain_nlp.tracking.mlflow_run import log_files
from raytrain_nlp.tracking.patience import Patience
from raytrain_nlp.tracking.tables import log_table, prediction_rows
from raytrain_nlp.tracking.tracker import Tracker


class Clock:
    """The time, and the CPU time of the thread that is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cpu = 100.0, 1.0
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(patience, "_cpu_of", lambda thread: self.cpu)


def waited(clock: Clock, cpu: float = 0.0, answers: bool = False, failures: int = 0) -> tuple[float, bool]:
    """Seconds that a patience of 10 s lasts, and whether it ends with life; a thread that has `cpu` of a CPU."""
    waits, began, count = Patience(10), clock.now, 0
    while waits.lasts(threading.current_thread(), count, failures):
        clock.now, clock.cpu, count = clock.now + 0.5, clock.cpu + cpu / 2, count + answers
    return clock.now - began, waits.shows_life


def test_a_silent_tracker_is_waited_for_as_long_as_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(Clock(monkeypatch)) == (10, False)
    assert waited(Clock(monkeypatch), cpu=0.001) == (10, False)  # SQLite's looks at a lock
    assert waited(Clock(monkeypatch), cpu=0.5, failures=1) == (10, False)  # a server that refuses, asked again


def test_one_that_computes_on_a_busy_machine_or_gets_answers_is_waited_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert waited(Clock(monkeypatch), cpu=0.05) == (40, True)
    assert waited(Clock(monkeypatch), answers=True) == (40, True)


def test_the_cpu_time_of_a_thread_is_its_own() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    began = patience._cpu_of(threading.current_thread())
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    assert patience._cpu_of(threading.current_thread()) > began and patience._cpu_of(thread) < 0.05
    over.set()
    thread.join()


class Refused(Exception):
    def __init__(self, text: str, code: str | None = None) -> None:
        super().__init__(text)
        if code:
            self.error_code = code


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (Refused("404", "ENDPOINT_NOT_FOUND"), True),
        (Refused("too long", "INVALID_PARAMETER_VALUE"), True),
        (AttributeError("no attribute 'create_logged_model'"), True),
        (Refused("busy", "TEMPORARILY_UNAVAILABLE"), False),
        (Refused("API request failed with exception", "INTERNAL_ERROR"), False),
        (ConnectionError("refused"), False),
        (TimeoutError(), False),
    ],
)
def test_what_passes_is_no_refusal(error: Exception, refusal: bool) -> None:
    assert is_refusal(error) is refusal
    assert not is_locked(error) and is_locked(Refused("(sqlite3.OperationalError) database is locked"))


def test_the_reason_of_an_error_has_one_line_and_no_password() -> None:
    uri = "http://ada:love%40lace@host"
    assert reason_of(ValueError(f"{uri} is away\nmore"), uri) == "http://***@host is away"
    assert reason_of(ValueError("love@lace"), uri) == "***" and reason_of(ValueError(), uri) == "ValueError"


def test_figures_of_a_step_are_the_first_ones_up_to_a_place(tmp_path: Path) -> None:
    log, file = EventLog(tmp_path / "events.jsonl"), tmp_path / "events.jsonl"
    log.write("log", step=1, metrics={"loss": 5.0})
    log.write("log", step=2, metrics={"loss": 1.0, "system/cpu": 3})
    log.write("log", step=2, metrics={"loss": 2.0, "eval_loss": 4.0})
    until = file.stat().st_size
    log.write("log", step=2, metrics={"eval_late": 4.0})
    found = figures_of(file, 2, 3, until)  # from the middle of a line on
    assert {key: value for key, (value, _) in found.items()} == {"loss": 1.0, "eval_loss": 4.0}


def test_a_user_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("uid 1000")

    monkeypatch.setattr(mlflow_run.getpass, "getuser", fail)
    assert mlflow_run._origin()["mlflow.user"] == "unknown"


def test_data_sets_have_names_digests_and_places(tmp_path: Path) -> None:
    rows = {"train": 90, "validation.a": 5, "validation.b": 6}
    job = load_job(
        plain_job(
            tmp_path,
            "run",
            data={
                "train": ["s3://ada:secret@bucket/x/train.jsonl", "more.jsonl"],
                "validation": {"a": "hf://glue/mrpc:validation", "b": "builtin:docstrings"},
            },
        )
    )
    file = SourceFile("x", "jsonl", 1, "digest")
    files = {"train": [file], "validation.a": [file], "validation.b": [file, file]}
    counts: dict[str, Any] = {name: {} for name in ("features", "left_out", "cut_rows")}
    counts |= {"rows": rows, "bad_rows": {"train": 2}}
    train, one, two = describe_datasets(job.data, files, counts)
    assert (train["name"], train["context"], train["source_type"]) == ("train.jsonl and 1 more", "training", "s3")
    assert "secret" not in str(train["source"]) and train["profile"] == {"num_rows": 90, "quarantined_rows": 2}
    assert (one["name"], one["source"]) == ("glue/mrpc:validation (a)", {"path": "glue/mrpc:validation"})
    assert (two["name"], two["source_type"]) == ("builtin:docstrings (b)", "code")
    assert train["digest"] == one["digest"] != two["digest"] and len(two["digest"]) == 16


def test_a_table_replaces_the_one_that_was_logged_before() -> None:
    texts: dict[str, str] = {}
    tags: dict[str, str] = {}
    client = SimpleNamespace(
        log_text=lambda run, text, name: texts.update({name: text}),
        get_run=lambda run: SimpleNamespace(data=SimpleNamespace(tags=tags)),
        set_tag=lambda run, key, value: tags.update({key: value}),
    )
    for rows in ([{"a": 1, "b": None}], [{"a": 1, "b": None}, {"a": 2, "b": Path("x")}]):
        log_table(client, "id", rows, "trials.json")
    assert texts == {"trials.json": '{"columns": ["a", "b"], "data": [[1, null], [2, "x"]]}'}
    assert tags == {"mlflow.loggedArtifacts": '[{"path": "trials.json", "type": "table"}]'}


class Client:
    """MLflow, as far as a tracker asks; it refuses what `refuses` names."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, float, int]] = []
        self.ended: list[str] = []
        self.refuses: dict[str, Exception] = {}
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any, **named: Any) -> Any:
            self.asked.append(name)
            if name in self.refuses:
                raise self.refuses[name]
            return SimpleNamespace(
                info=SimpleNamespace(run_id="id", experiment_id="0"), tags={}, experiment_id="0", outputs=None
            )

        return ask

    def search_runs(self, *arguments: Any, **named: Any) -> list[Any]:
        return []

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.figures += [(metric.key, metric.value, metric.step) for metric in metrics]

    def set_terminated(self, run: str, status: str) -> None:
        self.ended.append(status)


def test_a_tracker_sends_figures_once_and_no_counts_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, warned, paths = Client(), [], RunPaths(tmp_path, "run")
    paths.run.mkdir()
    monkeypatch.setattr(tracker, "build_client", lambda uri: client)
    log = EventLog(paths.events)
    log.write("log", step=0, metrics={"data/rows/train": 5, "loss": 1.0})
    log.write("datasets", datasets=[])
    log.write("log", step=0, metrics={"loss": 2.0})
    client.refuses = {"log_inputs": Refused("no such endpoint", "ENDPOINT_NOT_FOUND")}
    following = Tracker(paths, TrackingConfig(tracking_uri="http://host"), {}, "", warned.append).start()
    assert following.close("FINISHED") and following.run_id == "id"
    assert client.figures == [("loss", 1.0, 0)] and client.ended == ["FINISHED"]
    assert read_json(paths.tracking)["offset"] == paths.events.stat().st_size
    assert len(warned) == 1 and "does not take data sets: no such endpoint" in warned[0]


def test_what_fails_in_passing_is_tried_again_a_few_times(tmp_path: Path) -> None:
    client, told = Client(), []
    sent = Attachments(RunPaths(tmp_path, "run"), {}, lambda what, error: told.append((what, str(error))))
    client.refuses = {"log_inputs": Refused("busy", "TEMPORARILY_UNAVAILABLE")}
    event = {"kind": "datasets", "datasets": []}
    assert sent.takes(event) and not sent.takes({"kind": "end"}) and sent.takes({"kind": "notice", "artifact": "a"})
    for _ in range(2):
        with pytest.raises(Refused):
            sent.send(client, "id", event, 0)
    for _ in range(3):
        sent.send(client, "id", event, 0)
    assert told == [("data sets", "busy")] and client.asked == ["log_inputs"] * 3, "given up, and not asked again"


def test_predictions_are_a_table_of_the_run_and_files_are_put_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, texts, files = Client(), {}, []
    client.__dict__ |= {
        "log_text": lambda run, text, name: texts.update({name: text}),
        "get_run": lambda run: SimpleNamespace(data=SimpleNamespace(tags={})),
        "log_artifact": lambda run, path, folder: files.append((run, Path(path).name, folder)),
    }
    paths = RunPaths(tmp_path, "run")
    paths.run.mkdir()
    example = {"text": "a row", "prediction": "yes"}
    write_json(paths.predictions, {"sets": {"": {"examples": [example]}, "b": {"examples": []}}})
    told: list[Any] = []
    state = {"models": {"model": "known"}}
    sent = Attachments(paths, state, lambda what, error: told.append(what))
    sent.send(client, "id", {"kind": "model", "step": 1, "task": "masked-lm"}, 0)
    assert texts == {"predictions_table.json": '{"columns": ["text", "prediction"], "data": [["a row", "yes"]]}'}
    assert prediction_rows({"sets": {"b": {"examples": [example]}}}) == [{"set": "b", **example}]
    assert prediction_rows(None) == [] == told
    monkeypatch.setattr(mlflow_run, "build_client", lambda uri: client)
    assert log_files("http://host", "id", [paths.predictions], "report") is None
    assert files == [("id", "predictions.json", "report")]
    client.__dict__["log_artifact"] = lambda *_: (_ for _ in ()).throw(OSError("http://ada:love@host is full"))
    reason = log_files("http://ada:love@host", "id", [paths.predictions], "report")
    assert reason == "the tracker (http://***@host) fails: http://***@host is full"
