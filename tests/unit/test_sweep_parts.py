"""The parts of a sweep without Ray: the study and its journal, the planner, the book, what is inherited, the table."""

from __future__ import annotations

import csv
import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import plain_job

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.config.sweep import Sweep, load_sweep
from raytrain_nlp.errors import CheckpointError, InputError
from raytrain_nlp.launch.fit import Fit
from raytrain_nlp.paths import RunPaths, SweepPaths
from raytrain_nlp.run.record import open_run
from raytrain_nlp.run.trial_records import FAILED, FINISHED, STOPPED, Book
from raytrain_nlp.tuning import trial
from raytrain_nlp.tuning.concurrency import plan_concurrency
from raytrain_nlp.tuning.inherit import apply_pointer, donate
from raytrain_nlp.tuning.results import table_of, write_table
from raytrain_nlp.tuning.schedulers import LAST, build_scheduler, replay
from raytrain_nlp.tuning.searcher import NoUseToGoOn
from raytrain_nlp.tuning.study import Study
from raytrain_nlp.tuning.sweep_record import check_name, open_sweep
from raytrain_nlp.tuning.trial import Trial

SPACE = {
    "training.learning_rate": {"loguniform": [1e-5, 1e-1]},
    "lora.r": {"choice": [4, 8, 16]},
    "lora.lora_alpha": {"multiply": ["lora.r", 2]},
    "lora.target_modules": {"choice": [["query"], ["query", "value"]]},
    "lora.lora_dropout": {"uniform": [0.0, 0.5], "when": {"lora.r": [8, 16]}},
}


class Played(SimpleNamespace):
    """A trial as a scheduler sees it."""

    __hash__ = object.__hash__


def sweep_of(
    tmp_path: Path, space: dict[str, Any] = SPACE, job: dict[str, Any] | None = None, **sections: Any
) -> Sweep:
    base = plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, lora={"r": 8, "lora_alpha": 16}, **(job or {}))
    return load_sweep(
        {"kind": "sweep", "job": base, "search_space": space, "mode": "max", "metric": "eval_accuracy", **sections}
    )


def score(point: dict[str, Any]) -> float:
    """Best at a learning rate of 1e-3; the rank counts little."""
    return -abs(np.log10(point["training.learning_rate"]) + 3) + 0.01 * point["lora.r"]


def play(study: Study, book: Book, trials: int) -> list[dict[str, Any]]:
    points = []
    for _ in range(trials):
        number, point = study.ask()
        book.begin(number, point)
        for time in (1, 2):
            book.add(
                number,
                {
                    "training_iteration": time,
                    "step": 10 * time,
                    "epoch": time,
                    "eval_accuracy": score(point) - 1 / time,
                },
            )
            study.report(number, score(point) - 1 / time, time)
        book.end(number, FINISHED, {"eval_accuracy": score(point)})
        study.tell(book.trials[number])
        points.append(point)
    return points


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    found = SweepPaths(tmp_path, "sweep")
    found.trials.mkdir(parents=True)
    return found


def test_points_are_of_the_space_and_conditions_hold(tmp_path: Path, paths: SweepPaths) -> None:
    points = play(Study(sweep_of(tmp_path).config, paths.study), Book(paths), 25)
    assert {point["lora.r"] for point in points} == {4, 8, 16}
    assert {tuple(point["lora.target_modules"]) for point in points} == {("query",), ("query", "value")}
    assert all(("lora.lora_dropout" in point) == (point["lora.r"] >= 8) for point in points)
    assert all(1e-5 <= point["training.learning_rate"] <= 1e-1 and "lora.lora_alpha" not in point for point in points)


def test_tpe_learns_and_keeps_what_it_learned_in_its_journal(tmp_path: Path, paths: SweepPaths) -> None:
    config, book = sweep_of(tmp_path).config, Book(paths)
    first = play(Study(config, paths.study), book, 15)
    resumed = Study(config, paths.study)  # another driver
    later = play(resumed, book, 10)
    assert sorted(book.trials) == list(range(25)) and len(resumed.study.trials) == 25
    assert np.median([score(point) for point in later]) > np.median([score(point) for point in first[:10]]) + 0.5
    assert all(json.loads(line) for line in paths.study.read_text().splitlines())  # JSON lines, no pickle


def test_a_resumed_random_search_draws_other_points(tmp_path: Path, paths: SweepPaths) -> None:
    config = sweep_of(tmp_path, searcher={"type": "random"}).config
    points = [point for _ in range(2) for point in play(Study(config, paths.study), Book(paths), 3)]
    assert len({point["training.learning_rate"] for point in points}) == 6


def test_the_same_seed_draws_the_same_points(tmp_path: Path) -> None:
    config = sweep_of(tmp_path, searcher={"type": "random"}).config
    drawn = []
    for name in ("a", "b"):
        paths = SweepPaths(tmp_path, name)
        paths.trials.mkdir(parents=True)
        drawn.append(play(Study(config, paths.study), Book(paths), 3))
    assert drawn[0] == drawn[1]


def test_a_grid_is_tried_point_by_point_over_a_restart(tmp_path: Path, paths: SweepPaths) -> None:
    config = sweep_of(
        tmp_path,
        {"training.learning_rate": {"grid": [1e-3, 1e-2]}, "lora.r": {"grid": [4, 8]}},
        searcher={"type": "grid"},
    ).config
    points = play(Study(config, paths.study), Book(paths), 3) + play(Study(config, paths.study), Book(paths), 1)
    assert sorted((point["training.learning_rate"], point["lora.r"]) for point in points) == [
        (1e-3, 4),
        (1e-3, 8),
        (1e-2, 4),
        (1e-2, 8),
    ]


def test_an_interrupted_trial_is_told_to_the_study_by_the_next_driver(tmp_path: Path, paths: SweepPaths) -> None:
    config, book = sweep_of(tmp_path).config, Book(paths)
    number, point = Study(config, paths.study).ask()
    book.begin(number, point)
    book = Book(paths)
    assert [(record.number, record.params) for record in book.with_status("running")] == [(number, point)]
    resumed = Study(config, paths.study)
    resumed.reopen(number)
    book.end(number, FINISHED, {"eval_accuracy": 0.5})
    resumed.tell(book.trials[number])
    assert [trial.value for trial in resumed.study.trials] == [0.5]


def test_failed_and_not_finite_trials_are_never_the_best(paths: SweepPaths) -> None:
    book = Book(paths)
    ends = [(FINISHED, 0.5), (FINISHED, float("nan")), (FAILED, None), (STOPPED, 0.9), (FINISHED, 0.7), (FINISHED, 0.7)]
    for number, (status, value) in enumerate(ends):
        book.begin(number, {})
        book.end(number, status, {"eval_accuracy": value} if value is not None else None)
    assert book.best("eval_accuracy", "max").number == 4 and book.best("eval_accuracy", "min").number == 0
    assert Book(paths).best("eval_accuracy", "max").number == 4


NODE = {"CPU": 4.0}


@pytest.mark.parametrize(
    ("workers", "nodes", "most", "expected"),
    [
        ({"num_workers": 2, "resources_per_worker": {"CPU": 1}}, [NODE], None, 1),  # 2 x (1 + 0.5 for the feed)
        ({"num_workers": 2, "resources_per_worker": {"CPU": 1}}, [NODE, NODE], None, 2),
        ({"num_workers": 2, "resources_per_worker": {"CPU": 1}}, [{"CPU": 12.0}], None, 4),
        ({"num_workers": 2, "resources_per_worker": {"CPU": 1}}, [{"CPU": 12.0}], 3, 3),
        ({"num_workers": 1, "resources_per_worker": {"CPU": 3}}, [NODE] * 3, None, 3),
        ({"num_workers": 2, "use_gpu": True, "resources_per_worker": {"CPU": 1}}, [{"CPU": 64.0, "GPU": 8.0}], None, 4),
    ],
)
def test_as_many_trials_as_fit(
    tmp_path: Path, workers: dict[str, Any], nodes: list[dict[str, float]], most: int | None, expected: int
) -> None:
    assert plan_concurrency(sweep_of(tmp_path, job={"workers": workers}).jobs, nodes, most) == expected


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        (
            {"num_workers": 3, "resources_per_worker": {"CPU": 1}},
            [NODE],
            "needs 4.5 CPU (with 0.5 CPU for each worker's feed), the cluster can give 4",
        ),
        (
            {"num_workers": 2, "resources_per_worker": {"CPU": 3}},
            [{"CPU": 2.0}] * 5,
            "do not fit on the nodes, which have places for 0",
        ),
        ({"num_workers": 1, "use_gpu": True}, [NODE], "needs 1 GPU, the cluster can give 0"),
    ],
)
def test_a_trial_that_never_fits_is_refused(
    tmp_path: Path, workers: dict[str, Any], nodes: list[dict[str, float]], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_concurrency(sweep_of(tmp_path, job={"workers": workers}).jobs, nodes, None)
    assert expected in str(caught.value)


def test_the_largest_trial_of_the_space_counts(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path, {"workers.num_workers": {"choice": [1, 4]}}, job={"workers": {"resources_per_worker": {"CPU": 1}}}
    )
    assert plan_concurrency(sweep.jobs, [{"CPU": 12.0}], None) == 2


def test_a_resumed_asha_still_knows_the_good_trials(tmp_path: Path, paths: SweepPaths) -> None:
    config, book = sweep_of(tmp_path, scheduler={"type": "asha", "reduction_factor": 2}).config, Book(paths)
    for number, value in enumerate((0.9, 0.8)):
        book.begin(number, {})
        book.add(number, {"training_iteration": 1, "step": 10, "eval_accuracy": value})
        book.end(number, FINISHED, {"eval_accuracy": value})
    verdicts = []
    for known in (Book(paths), Book(SweepPaths(tmp_path, "empty"))):
        scheduler = build_scheduler(config, {"training_iteration": 3})
        replay(scheduler, known, config)
        trial = SimpleNamespace(trial_id="new", status="RUNNING")
        scheduler.on_trial_add(None, trial)
        verdicts.append(scheduler.on_trial_result(None, trial, {"training_iteration": 1, "eval_accuracy": 0.1}))
    assert verdicts == ["STOP", "CONTINUE"]


@pytest.mark.parametrize("kind", ["asha", "hyperband"])
def test_a_trial_is_not_stopped_when_only_its_model_is_left_to_write(tmp_path: Path, kind: str) -> None:
    """Ray's own schedulers stop a trial that reaches `max_t`; one that is stopped leaves no model."""
    config = sweep_of(tmp_path, scheduler={"type": kind, "max_t": 3}).config
    verdicts = []
    for last in (True, False):
        scheduler, trial = (
            build_scheduler(config, {"training_iteration": 3}),
            Played(trial_id="new", status="RUNNING", is_finished=lambda: False),
        )
        controller = SimpleNamespace(
            get_live_trials=lambda trial=trial: [trial],
            stop_trial=lambda trial, **_: None,
            pause_trial=lambda *_, **__: None,
        )
        scheduler.on_trial_add(controller, trial)
        for time in (1, 2, 3):
            verdict = scheduler.on_trial_result(
                controller, trial, {"training_iteration": time, "eval_accuracy": 0.5, LAST: last and time == 3}
            )
        verdicts.append(verdict)
    assert verdicts == ["CONTINUE", "STOP"]


def test_whom_pbt_copies_and_what_it_changes_are_the_seeds(tmp_path: Path) -> None:
    def draws(seed: int, disturbed: bool) -> list[tuple[str, dict[str, Any]]]:
        space = {
            "training.learning_rate": SPACE["training.learning_rate"],
            "training.weight_decay": {"choice": [0.0, 0.1, 0.2]},
        }
        scheduler = build_scheduler(
            sweep_of(tmp_path, space, scheduler={"type": "pbt"}, seed=seed).config, {"training_iteration": 3}
        )
        bad, *good = (
            Played(name=name, config={"training.learning_rate": 1e-3, "training.weight_decay": 0.1}) for name in "abcde"
        )
        scheduler._trial_state = {trial: SimpleNamespace(last_checkpoint="a checkpoint") for trial in (bad, *good)}
        found: list[tuple[str, dict[str, Any]]] = []
        scheduler._exploit = lambda controller, trial, donor: found.append(
            (donor.name, scheduler._get_new_config(trial, donor)[0])
        )
        for _ in range(6):
            if disturbed:
                random.random()
                np.random.random()
            scheduler._checkpoint_or_exploit(bad, None, good, [bad])
        return found

    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = draws(7, disturbed=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert draws(7, disturbed=True) == first != draws(8, disturbed=False)
    assert len({donor for donor, _ in first}) > 1


@pytest.mark.parametrize("unit", ["training_iteration", "step", "epoch"])
def test_a_time_before_the_end_of_every_trial_is_refused(tmp_path: Path, unit: str) -> None:
    config = sweep_of(tmp_path, scheduler={"type": "asha", "max_t": 2, "time_attr": unit}).config
    length = {"training_iteration": 2, "step": 2, "epoch": 2, unit: 3}
    with pytest.raises(InputError, match=f"scheduler.max_t: stops every trial at {unit} 2, a whole one has 3"):
        build_scheduler(config, length)


def test_many_failures_or_a_wrong_metric_end_the_sweep(paths: SweepPaths) -> None:
    book = Book(paths)
    few, any_number = NoUseToGoOn(book, 1), NoUseToGoOn(book, None)
    for number in range(2):
        assert not few.stop_all()
        book.begin(number, {})
        book.end(number, FAILED, reason="out of memory")
    assert few.stop_all() and not any_number.stop_all()
    book.wrong_metric = "is no figure of the evaluations"
    assert any_number.stop_all()


def test_a_name_that_is_taken_is_refused_and_a_resumed_sweep_is_the_same(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path)
    paths = SweepPaths(tmp_path / "runs", "sweep")
    assert not check_name(plan, paths, False, False)
    assert "there is no sweep 'sweep'" in str(check_name(plan, paths, True, False)[0])
    with open_run(paths, False) as record:
        open_sweep(plan, paths, record)
    assert "exists already (running). Add --resume" in str(check_name(plan, paths, False, False)[0])
    assert not check_name(plan, paths, False, True) and not check_name(plan, paths, True, False)
    assert "excludes --resume" in str(check_name(plan, paths, True, True)[0])
    other = sweep_of(tmp_path, scheduler={"type": "asha"}, job={"training": {"learning_rate": 0.5}})
    assert [problem.where for problem in check_name(other, paths, True, False)] == ["scheduler", "job"]


def test_the_table_has_a_row_for_each_trial(tmp_path: Path, paths: SweepPaths) -> None:
    sweep = sweep_of(
        tmp_path,
        {
            "training.learning_rate": SPACE["training.learning_rate"],
            "lora.r": SPACE["lora.r"],
            "lora.lora_alpha": SPACE["lora.lora_alpha"],
        },
    )
    study, book = Study(sweep.config, paths.study), Book(paths)
    play(study, book, 12)
    number, point = study.ask()
    book.begin(number, point)
    book.end(number, FAILED, reason="the loss is nan")
    study.tell(book.trials[number])
    write_table(table_of(sweep, book), paths)
    rows = list(csv.DictReader(paths.table.read_text().splitlines()))
    assert len(rows) == 13 and all(int(row["lora.lora_alpha"]) == 2 * int(row["lora.r"]) for row in rows)
    assert [float(row["eval_accuracy"]) for row in rows[:12]] == pytest.approx(
        [book.trials[i].metrics["eval_accuracy"] for i in range(12)]
    )
    assert (rows[12]["status"], rows[12]["reason"], rows[12]["eval_accuracy"]) == ("failed", "the loss is nan", "")


def checkpoint_of(paths: RunPaths, step: int, value: float) -> torch.Tensor:
    staging = store.staging_dir(paths.checkpoints, step)
    staging.mkdir(parents=True)
    weights = torch.full((8,), value)
    save_state(staging / "model.state", {"weights": weights})
    files = store.describe_files(staging, [staging / "model.state"])
    store.commit(paths.checkpoints, staging, store.Manifest(step, 2, 3, "data", {}, files))
    return weights


def weights_of(checkpoint: store.Checkpoint) -> torch.Tensor:
    return load_state(checkpoint.path / "model.state")["weights"]


def test_the_receiver_gets_the_donors_bits_though_the_donor_retires_them(tmp_path: Path) -> None:
    donor, receiver, notes = RunPaths(tmp_path, "donor"), RunPaths(tmp_path, "receiver"), []
    checkpoint_of(donor, 10, 1.0)
    wanted = checkpoint_of(donor, 20, 2.0)
    checkpoint_of(receiver, 20, 3.0)
    checkpoint_of(receiver, 30, 4.0)
    pointer = donate(donor, step=25, training_iteration=2)
    checkpoint_of(donor, 30, 5.0)
    store.apply_retention(donor.store, donor.checkpoints, 1, set())
    apply_pointer(pointer, receiver, notes.append)
    found = store.find_checkpoint(receiver.checkpoints)
    assert (pointer.step, pointer.training_iteration, found.manifest.step) == (20, 2, 20) and torch.equal(
        weights_of(found), wanted
    )
    assert [checkpoint.manifest.step for checkpoint in store.list_checkpoints(receiver.checkpoints)] == [20]
    assert notes == ["goes on from step 20 of donor."] and not list(receiver.checkpoints.glob(".*"))


def test_a_paused_trial_goes_back_to_where_it_was_judged(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "trial")
    wanted = checkpoint_of(paths, 10, 1.0)
    pointer = donate(paths, step=10, training_iteration=1)
    checkpoint_of(paths, 20, 2.0)
    apply_pointer(pointer, paths, print)
    assert torch.equal(weights_of(store.find_checkpoint(paths.checkpoints)), wanted)


def test_a_damaged_checkpoint_is_not_inherited(tmp_path: Path) -> None:
    donor, receiver = RunPaths(tmp_path, "donor"), RunPaths(tmp_path, "receiver")
    checkpoint_of(donor, 10, 1.0)
    pointer = donate(donor, step=10, training_iteration=1)
    file = Path(pointer.folder) / "model.state"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be inherited: model.state does not match its hash"):
        apply_pointer(pointer, receiver, print)


def test_a_trial_inherits_once_the_run_that_tune_took_away_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor that had the trial before commits one more checkpoint while it ends: the trial must not go on from
    it.
    """
    paths = RunPaths(tmp_path, "trial")
    wanted = checkpoint_of(paths, 10, 1.0)
    heir = Trial.__new__(Trial)
    heir._paths, heir._pointer = paths, donate(paths, step=10, training_iteration=1)
    heir._fit = Fit()
    waited = threading.Event()
    monkeypatch.setattr(trial.time, "sleep", lambda seconds: waited.set() or threading.Event().wait(0.01))
    thread = threading.Thread(target=heir._when_free, args=(heir._inherit_now,))
    with open_run(paths, overwrite=False):
        thread.start()
        assert waited.wait(30), "the heir looks again while the run is held"
        checkpoint_of(paths, 20, 2.0)
    thread.join(30)
    found = store.find_checkpoint(paths.checkpoints)
    assert found is not None and found.manifest.step == 10 and torch.equal(weights_of(found), wanted)
