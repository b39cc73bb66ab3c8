"""The driver's side of a sweep without Ray: a trial in its actor, what Tune is told, the runs in MLflow, registration,
importance, and what is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from ray import tune
from support import plain_job

from raytrain_nlp.config.sweep import Sweep, load_sweep
from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.trial_records import FAILED, FINISHED, STOPPED, Book
from raytrain_nlp.tuning import mlflow_runs, plots, sweep, trial, tune_run
from raytrain_nlp.tuning.mlflow_runs import Tree
from raytrain_nlp.tuning.observer import SweepObserver
from raytrain_nlp.tuning.plots import importances, write_plots
from raytrain_nlp.tuning.registration import check_registration, register_best
from raytrain_nlp.tuning.schedulers import build_scheduler
from raytrain_nlp.tuning.study import Study
from raytrain_nlp.tuning.trial import NUMBER, Trial, TrialSettings
from raytrain_nlp.tuning.tune_environment import quiet_tune, tune_environment
from raytrain_nlp.tuning.tune_run import run_trials

SPACE = {"training.learning_rate": {"loguniform": [1e-5, 1e-1]}, "seed": {"choice": [1, 2, 3]}}


def plan_of(tmp_path: Path, job: dict[str, Any] | None = None, **sections: Any) -> Sweep:
    base = plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, **(job or {}))
    return load_sweep(
        {
            "kind": "sweep",
            "name": "s",
            "job": base,
            "search_space": SPACE,
            "mode": "max",
            "metric": "eval_accuracy",
            **sections,
        }
    )


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    paths = SweepPaths(tmp_path / "runs", "s")
    paths.trials.mkdir(parents=True)
    return paths


# a trial in its actor


@dataclass(frozen=True)
class Spec:
    total_steps: int = 20
    storage_path: str = ""
    renew_hyperparameters: bool = False
    job: Any = None


@dataclass(frozen=True)
class Prepared:
    spec: Spec


@pytest.fixture
def start(tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """A trial whose run does what it is given to do with the trial as its observer."""

    def make(does: Callable[[Trial, Any], dict[str, float]], waits: bool = False) -> Trial:
        files = SimpleNamespace(train=[])
        monkeypatch.setattr("raytrain_nlp.planning.inputs.find_job_files", lambda job, storage: files)
        monkeypatch.setattr(trial, "prepare", lambda job, *_: Prepared(Spec()))
        monkeypatch.setattr(trial, "keep_fitted", lambda job, kept: (job, {}))
        monkeypatch.setattr(trial, "measured", lambda job, storage: contextlib.nullcontext(0))
        fitted = {"values": {}, "choice": None}
        monkeypatch.setattr(trial, "fit", lambda job, made, *_: SimpleNamespace(job=job, resolved=made, **fitted))
        monkeypatch.setattr(
            trial,
            "run_resolved",
            lambda job, resolved, paths, observer, **_: SimpleNamespace(metrics=does(observer, (job, resolved.spec))),
        )
        plan = plan_of(tmp_path)
        settings = TrialSettings(
            plan.values,
            plan.config.search_space,
            str(paths.storage),
            str(paths.trials),
            "eval_accuracy",
            waits,
            False,
            None,
        )
        return Trial(settings, "trial-0003", {"training.learning_rate": 0.25, "seed": 2, NUMBER: 3}, None)

    return make


def evaluated(step: int, value: float, name: str = "eval_accuracy") -> dict[str, Any]:
    return {"kind": "log", "step": step, "metrics": {name: value, "epoch": step / 10}}


def test_a_trial_gives_its_evaluations_in_order_and_then_how_it_ended(
    start: Callable[..., Trial], paths: SweepPaths
) -> None:
    seen = []

    def does(observer: Trial, given: Any) -> dict[str, float]:
        seen.append(given)
        for step, value in ((10, 0.5), (20, 0.75)):
            observer.event({"kind": "log", "step": step, "metrics": {"loss": 1.0}})
            observer.event(evaluated(step, value))
        return {"eval_accuracy": 0.75}

    one = start(does)
    results = [one.next_result() for _ in range(3)]
    assert [(result["training_iteration"], result["step"], result["eval_accuracy"]) for result in results] == [
        (1, 10, 0.5),
        (2, 20, 0.75),
        (2, 20, 0.75),
    ]
    assert results[2]["done"] and results[2]["status"] == FINISHED and "done" not in results[0]
    (job, spec) = seen[0]
    assert (
        job.name == "trial-0003"
        and job.training["learning_rate"] == 0.25
        and job.seed == 2
        and spec.storage_path == str(paths.trials)
    )
    one.stop()


def test_a_result_that_is_passed_on_waits_for_its_checkpoint(start: Callable[..., Trial]) -> None:
    """Population based training would copy a checkpoint that is not there."""
    committed = threading.Event()

    def does(observer: Trial, given: Any) -> dict[str, float]:
        observer.event(evaluated(10, 0.5))
        observer.event({"kind": "checkpoint", "step": 5})
        assert observer._results.empty()
        committed.set()
        observer.event({"kind": "checkpoint", "step": 10})
        return {}

    one = start(does, waits=True)
    assert one.next_result()["step"] == 10 and committed.is_set() and one.next_result()["done"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RunError("no\nroom"), "no room"), (MemoryError(), "MemoryError: "), (ValueError("a\nb"), "ValueError: a")],
)
def test_a_trial_that_fails_says_why_in_a_line_and_ends_no_sweep(
    start: Callable[..., Trial], error: Exception, reason: str
) -> None:
    def does(observer: Trial, given: Any) -> dict[str, float]:
        raise error

    result = start(does).next_result()
    assert result["done"] and result["status"] == FAILED and result["reason"] == reason


def test_a_metric_that_no_evaluation_has_is_told_with_those_there_are(start: Callable[..., Trial]) -> None:
    def does(observer: Trial, given: Any) -> dict[str, float]:
        observer.event({"kind": "log", "step": 10, "metrics": {"eval_f1": 0.5, "eval_loss": 1.0}})
        return {}

    result = start(does).next_result()
    assert (
        result["wrong_metric"] and result["reason"] == "is no figure of the evaluations, which have eval_f1, eval_loss"
    )


# what Tune is told


def test_tune_is_quiet_and_its_settings_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_WARN_THRESHOLD_S", "7")
    monkeypatch.delenv("TUNE_X", raising=False)
    before = dict(os.environ)
    with tune_environment({"TUNE_X": "1"}):
        assert (
            os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
            and os.environ["TUNE_X"] == "1"
            and os.environ["TUNE_WARN_THRESHOLD_S"] == "7"
        ), "what the user has set stays"
    assert dict(os.environ) == before
    logger = logging.getLogger("ray.tune")
    level = logger.level
    for verbose, inside in ((False, logging.CRITICAL), (True, level)):
        with quiet_tune(verbose):
            assert logger.level == inside
        assert logger.level == level


@pytest.mark.parametrize("concurrent", [1, 3, 7, 50])
def test_as_many_trials_run_as_were_planned_and_no_secret_travels(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch, concurrent: int
) -> None:
    plan = plan_of(
        tmp_path, reuse_workers=False, num_samples=4, job={"tracking": {"tracking_uri": "http://user:secret@host"}}
    )
    told: dict[str, Any] = {}
    monkeypatch.setattr(tune, "with_parameters", lambda kind, settings: (kind, settings))
    monkeypatch.setattr(
        tune,
        "run",
        lambda trainable, **options: told.update(trainable=trainable, environment=dict(os.environ), **options),
    )
    paths.ray.mkdir()
    book, tree = Book(paths), SimpleNamespace(end=None, follow=None)
    scheduler = build_scheduler(plan.config, 20, concurrent)
    run_trials(plan, paths, book, Study(plan.config, paths.study), tree, concurrent, scheduler, SweepObserver(), False)  # type: ignore[arg-type]
    (share,) = told["resources_per_trial"].required_resources.values()
    assert math.floor(1 / share + 1e-9) == concurrent and told["max_concurrent_trials"] == concurrent
    settings = told["trainable"][1]
    assert "secret" not in repr(settings) and settings.values["storage_path"] == str(plan.job.storage_path)
    assert told["environment"]["TUNE_DISABLE_SIGINT_HANDLER"] == "1" and not paths.ray.exists(), (
        "nothing is resumed from Tune's own files"
    )


def test_a_sweep_whose_trials_have_all_ended_starts_none(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_run, "tune_environment", None)
    plan, book = plan_of(tmp_path, reuse_workers=False, num_samples=2), Book(paths)
    for number in range(2):
        paths.trial(number).run.mkdir()
        book.begin(number, {"seed": 1})
        book.end(number, FINISHED, {"eval_accuracy": 0.5})
    tree: Any = SimpleNamespace(end=None, follow=None)
    run_trials(
        plan,
        paths,
        book,
        Study(plan.config, paths.study),
        tree,
        1,
        build_scheduler(plan.config, 20, 1),
        SweepObserver(),
        False,
    )


# MLflow


class Server(SimpleNamespace):
    """Trackers as the sweep's driver makes them, and the client of their server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: bool = True) -> None:
        super().__init__(trackers=[], tags={}, artifacts=[], answers=answers)
        server = self

        class Tracker(SimpleNamespace):
            def __init__(self, paths: Any, config: Any, params: dict[str, Any], text: str, warn: Any) -> None:
                super().__init__(
                    paths=paths, config=config, params=params, run_id=None, status=None, uri="http://user:secret@host"
                )
                server.trackers.append(self)

            def start(self) -> Any:
                self.run_id = f"id-{self.paths.run.name}"
                return self

            def finish(self, status: str) -> None:
                self.status = status

            close = end_at_once = finish

        class Client:
            def __init__(self, tracking_uri: str) -> None:
                if not server.answers:
                    raise ConnectionError(f"{tracking_uri} does not answer\nmore")

            def set_tag(self, run: str, key: str, value: str) -> None:
                server.tags.setdefault(run, {})[key.removeprefix("raytrain_nlp.")] = value

            def log_text(self, run: str, text: str, name: str) -> None:
                server.artifacts.append((run, name, len(json.loads(text)["data"])))

            def get_run(self, run: str) -> Any:
                return SimpleNamespace(data=SimpleNamespace(tags={}))

            def log_artifact(self, run: str, path: str, folder: str | None) -> None:
                server.artifacts.append((run, Path(path).name, folder))

        monkeypatch.setattr(mlflow_runs, "Tracker", Tracker)
        monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))


def test_a_sweep_is_one_run_with_a_child_for_each_trial(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, plan, book = Server(monkeypatch), plan_of(tmp_path), Book(paths)
    tree = Tree(plan, paths, book, "text", lambda text: None)
    for number, status in enumerate((FINISHED, STOPPED, FAILED)):
        paths.trial(number).run.mkdir()
        record = book.begin(number, {"seed": number, "training.learning_rate": 0.1})
        tree.follow(record)
        assert len(server.trackers) == 1 + number + bool(number), "no child before there is a parent to be named"
        if not number:
            tree.start()
        book.end(
            number,
            status,
            {"eval_accuracy": 0.5} if status == FINISHED else None,
            "no room" if status == FAILED else None,
        )
        tree.end(record, 0.5)
    best = book.trials[0]
    assert tree.close("FINISHED", best, [paths.table, paths.plots / "a.png"]) == "id-s"
    parent, *children = server.trackers
    assert parent.status == "FINISHED" and [child.status for child in children] == ["FINISHED", "KILLED", "FAILED"]
    assert {child.config.tags["mlflow.parentRunId"] for child in children} == {"id-s"} and children[1].config.tags[
        "searched.seed"
    ] == "1"
    assert Book(paths).trials[1].mlflow_run_id == "id-trial-0001", "the next driver goes on with the same runs"
    assert (
        server.tags["id-trial-0000"]["best"] == "true"
        and "best" not in server.tags["id-trial-0001"]
        and server.tags["id-trial-0002"]["reason"] == "no room"
    )
    assert {key: server.tags["id-s"][key] for key in ("finished", "stopped", "failed", "running", "best_trial")} == {
        "finished": "1", "stopped": "1", "failed": "1", "running": "0", "best_trial": "0",
    }  # fmt: skip
    assert server.artifacts == [("id-s", "trials.json", 3), ("id-s", "trials.csv", None), ("id-s", "a.png", "plots")]
    assert json.loads(server.tags["id-s"]["mlflow.loggedArtifacts"]) == [{"path": "trials.json", "type": "table"}]
    logged = [json.loads(line) for line in paths.events.read_text().splitlines()]
    assert [event["metrics"]["trials/ended"] for event in logged] == [1, 2, 3]


def test_a_server_that_fails_ends_no_sweep_and_its_password_is_not_told(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server(monkeypatch, answers=False)
    warned: list[str] = []
    tree = Tree(plan_of(tmp_path), paths, Book(paths), "text", warned.append).start()
    assert tree.close("FAILED", None, []) == "id-s"
    assert len(warned) == 1 and "does not answer" in warned[0] and "secret" not in warned[0] and "\n" not in warned[0]


# the end of a sweep


def test_only_what_the_registry_takes_is_registered(tmp_path: Path) -> None:
    assert check_registration(plan_of(tmp_path)) == [] == check_registration(plan_of(tmp_path, register_model="m"))
    base = {**plain_job(tmp_path, "base", data={"validation": "v.jsonl"}), "task": {"type": "summarization"}}
    plan = load_sweep(
        {
            "kind": "sweep",
            "job": base,
            "search_space": SPACE,
            "mode": "min",
            "metric": "eval_loss",
            "register_model": "m",
        }
    )
    (problem,) = check_registration(plan)
    assert (
        str(problem)
        == "register_model: is not possible for summarization: transformers 5 has no pipeline for it. Leave it out."
    )


def test_the_best_model_is_registered_merged_and_a_failure_names_the_command(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, warned, asked = plan_of(tmp_path, register_model="best"), [], []
    book = Book(paths)
    paths.trial(4).run.mkdir()
    record = book.begin(4, {})
    run = SimpleNamespace(paths=SimpleNamespace(run=paths.trial(4).run))
    monkeypatch.setattr("raytrain_nlp.run.saved_run.find_run", lambda folder: run)
    monkeypatch.setattr("raytrain_nlp.run.saved_run.find_weights", lambda run, which: "weights")
    monkeypatch.setattr(
        "raytrain_nlp.verbs.export.write_weights",
        lambda run, weights, folder, dtype, merge_lora, stage: asked.append(merge_lora),
    )
    monkeypatch.setattr("raytrain_nlp.tracking.registry.register_model", lambda *given: asked.append(given[-1]) or "7")
    assert register_best(plan, paths, record, warned.append) == "7" and asked == [True, "best"] and not warned

    def fails(*_: Any) -> str:
        raise RunError("the server is away.")

    monkeypatch.setattr("raytrain_nlp.tracking.registry.register_model", fails)
    assert register_best(plan, paths, record, warned.append) is None
    assert warned == [
        f"the server is away. Register it by hand: raytrain-nlp export {paths.trial(4).run} --output DIR --merge-lora "
        f"--register best."
    ]


def study_of(trials: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1), direction="maximize")

    def value(trial: optuna.Trial) -> float:
        trial.suggest_categorical("c", ["x"])
        return trial.suggest_float("a", 0, 1) + 0.01 * trial.suggest_float("b", 0, 1)

    study.optimize(value, trials)
    return study


def test_the_key_that_matters_is_the_important_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        optuna.importance, "FanovaImportanceEvaluator", lambda seed: optuna.importance.PedAnovaImportanceEvaluator()
    )  # without scikit-learn's forests
    found = importances(study_of(12), ["a", "b", "c"])
    assert found["a"] > 0.6 and sum(found.values()) == pytest.approx(1) and set(found) == {"a", "b"}, (
        "a key of one value explains nothing"
    )
    assert importances(study_of(2), ["a", "b"]) == {} == importances(study_of(12), ["unknown"])


def test_pictures_are_those_the_trials_allow(
    tmp_path: Path, paths: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "draw_panel", lambda panel, caption: b"png")
    plan, book = plan_of(tmp_path), Book(paths)
    names = [path.name for path in write_plots(plan.config, book, study_of(1), paths.plots)]
    assert names == ["metric-over-steps.png"]
    paths.trial(0).run.mkdir()
    book.begin(0, {"seed": 1, "training.learning_rate": 0.1})
    book.end(0, FINISHED, {"eval_accuracy": 0.5})
    names = [path.name for path in write_plots(plan.config, book, study_of(1), paths.plots)]
    assert names == ["metric-over-steps.png", "metric-against-keys.png", "parallel-coordinates.png"]
    book.end(0, FINISHED, {"eval_accuracy": math.nan})
    assert len(write_plots(plan.config, book, study_of(1), paths.plots)) == 1


def test_a_sweep_tells_its_observer_more_than_a_run_and_shows_nothing_by_itself(
    tmp_path: Path, paths: SweepPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    observer, book = SweepObserver(), Book(paths)
    paths.trial(0).run.mkdir()
    observer.begin(plan_of(tmp_path), 2)
    observer.trial(book.begin(0, {}), [])
    observer.stage("x")
    assert isinstance(observer, Observer) and capsys.readouterr() == ("", "")


def test_all_that_is_wrong_with_a_sweep_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "connect_ahead", None)
    base = {
        **plain_job(tmp_path, "base", data={"validation": "v.jsonl"}),
        "task": {"type": "summarization"},
        "storage_path": "/proc/nowhere",
    }
    values = {
        "kind": "sweep",
        "name": "s",
        "job": base,
        "search_space": SPACE,
        "mode": "min",
        "metric": "eval_loss",
        "register_model": "m",
    }
    with pytest.raises(InputError) as caught:
        sweep.sweep(values)
    assert {problem.where for problem in caught.value.problems} >= {"storage_path", "register_model"}
