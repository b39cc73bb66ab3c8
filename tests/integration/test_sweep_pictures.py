"""The pictures of a sweep, and how much each key counted for its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import plain_job

from raytrain_nlp.config.sweep import load_sweep
from raytrain_nlp.paths import SweepPaths
from raytrain_nlp.run.trial_records import FAILED, FINISHED, Book
from raytrain_nlp.tuning.plots import importances, write_plots
from raytrain_nlp.tuning.study import Study

SPACE = {
    "training.learning_rate": {"loguniform": [1e-5, 1e-1]},
    "lora.r": {"choice": [4, 8, 16]},
    "lora.lora_alpha": {"multiply": ["lora.r", 2]},
}


def test_pictures_are_drawn_and_the_learning_rate_counts_most(tmp_path: Path) -> None:
    job = plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, lora={"r": 8, "lora_alpha": 16})
    sweep = load_sweep({"kind": "sweep", "job": job, "search_space": SPACE, "mode": "max", "metric": "eval_accuracy"})
    paths = SweepPaths(tmp_path, "sweep")
    paths.trials.mkdir(parents=True)
    study, book = Study(sweep.config, paths.study), Book(paths)
    for _ in range(12):
        number, point = study.ask()
        score = -abs(np.log10(point["training.learning_rate"]) + 3) + 0.01 * point["lora.r"]  # the rank counts little
        book.begin(number, point)
        for time in (1, 2):
            book.add(
                number,
                {"training_iteration": time, "step": 10 * time, "epoch": time, "eval_accuracy": score - 1 / time},
            )
            study.report(number, score - 1 / time, time)
        book.end(number, FINISHED, {"eval_accuracy": score})
        study.tell(book.trials[number])
    number, point = study.ask()
    book.begin(number, point)
    book.end(number, FAILED, reason="the loss is nan")
    study.tell(book.trials[number])
    weights = importances(study.study, ["training.learning_rate", "lora.r"])
    assert weights["training.learning_rate"] > 0.8 and sum(weights.values()) == pytest.approx(1)
    drawn = write_plots(sweep.config, book, study.study, paths.plots)
    assert [path.stem for path in drawn] == [
        "metric-over-steps",
        "metric-against-keys",
        "parallel-coordinates",
        "importance",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000 for path in drawn)


def test_trials_that_are_all_alike_have_a_picture_too(tmp_path: Path) -> None:
    """A warning of matplotlib's is an error here: its layout would have collapsed."""
    job = plain_job(tmp_path, "base", data={"validation": "v.jsonl"})
    space = {"training.learning_rate": {"loguniform": [1e-5, 1e-1]}}
    sweep = load_sweep({"kind": "sweep", "job": job, "search_space": space, "mode": "max", "metric": "eval_accuracy"})
    paths = SweepPaths(tmp_path, "alike")
    paths.trials.mkdir(parents=True)
    study, book = Study(sweep.config, paths.study), Book(paths)
    number, point = study.ask()
    book.begin(number, point)
    book.end(number, FINISHED, {"eval_accuracy": 0.5})
    study.tell(book.trials[number])
    drawn = write_plots(sweep.config, book, study.study, paths.plots)
    assert [path.stem for path in drawn] == ["metric-over-steps", "metric-against-keys", "parallel-coordinates"]
