"""Sweep job files: what a space means, and every wrong one refused with one line before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import plain_job

from raytrain_nlp.config import load_job
from raytrain_nlp.config.sweep.checks import check_space
from raytrain_nlp.config.sweep.job import Sweep, SweepJob
from raytrain_nlp.config.sweep.load import load_sweep
from raytrain_nlp.config.sweep.search_space import SearchKey, apply_point, grid_points
from raytrain_nlp.errors import InputError

LORA = {"r": 8, "lora_alpha": 16}


def sweep_of(tmp_path: Path, space: dict[str, Any], job: dict[str, Any] | None = None, **sections: Any) -> Sweep:
    base = plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, lora=LORA, **(job or {}))
    return load_sweep({"kind": "sweep", "job": base, "search_space": space, **sections})


def refused(tmp_path: Path, space: dict[str, Any], **sections: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        sweep_of(tmp_path, space, **sections)
    return [str(problem) for problem in caught.value.problems]


def test_ties_follow_the_searched_value_and_keep_its_type(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"lora.r": {"choice": [4, 8]}, "lora.lora_alpha": {"multiply": ["lora.r", 2]}})
    assert [load_job(sweep.trial_values({"lora.r": r})).lora for r in (4, 8)] == [
        {"r": 4, "lora_alpha": 8},
        {"r": 8, "lora_alpha": 16},
    ]
    assert isinstance(sweep.trial_values({"lora.r": 4})["lora"]["lora_alpha"], int)


def test_a_tie_may_follow_a_key_the_job_sets(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        {
            "training.weight_decay": {"multiply": ["training.learning_rate", 10]},
            "training.learning_rate": {"uniform": [0.1, 0.2]},
        },
    )
    assert sweep.trial_values({})["training"]["weight_decay"] == pytest.approx(1e-2)


def test_the_base_job_is_not_changed_by_its_trials() -> None:
    values = {"training": {"learning_rate": 1.0}}
    changed = apply_point(values, {}, {"training.learning_rate": 2.0, "lora.r": 4})
    assert values == {"training": {"learning_rate": 1.0}} and changed == {
        "training": {"learning_rate": 2.0},
        "lora": {"r": 4},
    }


def test_a_grid_has_every_point_once_and_conditions_hold() -> None:
    space = {
        "b": SearchKey(choice=[0.1, 0.2], when={"a": 8}),
        "a": SearchKey(grid=[4, 8]),
        "c": SearchKey.model_validate({"int": [1, 2]}),
        "d": SearchKey(quniform=(0.0, 0.5, 0.5)),
    }
    points = list(grid_points(space))
    assert len(points) == 2 * 2 + 2 * 2 * 2 and len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(("b" in point) == (point["a"] == 8) for point in points)
    assert {point["d"] for point in points} == {0.0, 0.5} and {point["c"] for point in points} == {1, 2}


def test_grid_decides_the_number_of_trials(tmp_path: Path) -> None:
    assert (
        sweep_of(
            tmp_path,
            {"lora.r": {"grid": [2, 4, 8]}, "training.warmup_steps": {"int": [1, 2]}},
            searcher={"type": "grid"},
        ).num_trials
        == 6
    )


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"training.learning_rat": {"uniform": [0, 1]}}, ["search_space.training.learning_rat: unknown key. Did you "
                                                          "mean 'learning_rate'?"]),
        ({"lora.r": {"choice": [4, "x", 0]}}, ["search_space.lora.r: is wrong ('x')", "search_space.lora.r: must be "
                                                                                      "above 0 (0)"]),
        ({"workers.num_workers": {"choice": [0, 2]}}, ["search_space.workers.num_workers: should be greater than or "
                                                       "equal to 1 (0)."]),
        ({"training.learning_rate": {"uniform": [1, 0]}}, ["search_space.training.learning_rate: the lower end is not "
                                                           "below the upper one (1 and 0)."]),
        ({"training.learning_rate": {"loguniform": [0, 1]}}, ["search_space.training.learning_rate: loguniform needs a "
                                                              "lower end above 0 (0)."]),
        ({"lora.r": {"choice": [4], "int": [2, 4]}}, ["search_space.lora.r: has choice and int. Give one of choice, "
                                                      "grid, uniform"]),
        ({"lora.r": {"choose": [4]}}, ["search_space.lora.r.choose: unknown key. Did you mean 'choice'?"]),
        ({"lora.r": {"grid": [4]}}, ["search_space.lora.r: is a grid, the searcher is optuna. Use choice"]),
        ({"lora.r": {"choice": [4], "when": {"training.seed": 1}}}, ["search_space.lora.r: `when` names training.seed, "
                                                                     "which is not another searched key."]),
        ({"lora.lora_alpha": {"multiply": ["lora.q", 2]}, "lora.r": {"choice": [4]}}, ["search_space.lora.lora_alpha: "
                                                                                       "is tied to lora.q, which has "
                                                                                       "no number."]),
        ({"name": {"choice": ["a"]}}, ["search_space.name: is the sweep's own and cannot be searched."]),
        ({"lora.lora_alpha": {"multiply": ["lora.r", 2]}}, ["search_space: has only ties."]),
    ],
)  # fmt: skip
def test_a_wrong_space_is_refused_by_key(tmp_path: Path, space: dict[str, Any], expected: list[str]) -> None:
    lines = refused(tmp_path, space)
    assert len(lines) == len(expected) and all(
        line.startswith(start) for line, start in zip(lines, expected, strict=True)
    ), lines


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    lines = refused(
        tmp_path, {"training.seed": {"choice": ["x"]}, "lora.rank": {"choice": [4]}, "data.max_length": {"int": [1, 3]}}
    )
    assert [line.split(":")[0] for line in lines] == [
        "search_space.training.seed",
        "search_space.lora.rank",
        "search_space.data.max_length",
    ]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"metric": ["eval_loss", "eval_accuracy"]}, "metric: names several figures; a sweep has one objective. Name "
                                                     "one figure"),
        ({"metric": "accuracy"}, "metric: is not a figure of the evaluations (accuracy)".replace(" (accuracy)", " ('accuracy')")),  # noqa: E501
        ({"mode": "best"}, "mode: should be 'min' or 'max'"),
        ({"scheduler": {"type": "bohb"}}, "scheduler.type: unknown type ('bohb')."),
        ({"scheduler": {"type": "asha", "grace": 1}}, "scheduler.grace: unknown key."),
        ({"scheduler": {"type": "pbt"}}, "search_space.lora.r: cannot change while a model trains, as pbt would have "
                                         "it."),
        ({"searcher": {"type": "grid"}, "search_space": {"training.learning_rate": {"uniform": [0.1, 0.2]}}}, "search_space.training.learning_rate: has infinitely many values"),  # noqa: E501
        ({"job": {"task": {"type": "text-classification"}}}, "job.model: is missing."),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(tmp_path: Path, sections: dict[str, Any], expected: str) -> None:
    values = {
        "kind": "sweep",
        "job": plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, lora=LORA),
        "search_space": {"lora.r": {"choice": [4]}},
    }
    with pytest.raises(InputError) as caught:
        load_sweep({**values, **sections})
    assert str(caught.value.problems[0]).startswith(expected)


def test_pbt_needs_a_checkpoint_at_each_evaluation(tmp_path: Path) -> None:
    lines = refused(
        tmp_path,
        {"training.learning_rate": {"uniform": [0.1, 0.2]}},
        scheduler={"type": "pbt"},
        job={"checkpoint": {"save_steps": 3}},
    )
    assert [line.split(".")[0:3] for line in lines] == [
        ["job", "training", "save_strategy: pbt needs a checkpoint at each evaluation"]
    ]


def test_a_sweep_without_evaluations_is_refused(tmp_path: Path) -> None:
    job = plain_job(tmp_path, "base")
    with pytest.raises(InputError, match="job.data.validation: is missing: a sweep compares evaluations"):
        load_sweep({"kind": "sweep", "job": job, "search_space": {"training.seed": {"choice": [1]}}})


def test_the_job_may_be_a_file_beside_the_sweep_and_set_reaches_into_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(plain_job(tmp_path, "base", data={"validation": "v.jsonl"})))
    (tmp_path / "sweep.yaml").write_text("kind: sweep\njob: base.yaml\nsearch_space: {seed: {choice: [1, 2]}}\n")
    sweep = load_sweep(
        tmp_path / "sweep.yaml", ["job.training.max_steps=5", "num_samples=3", "storage_path=/elsewhere"]
    )
    assert sweep.job.arguments()["max_steps"] == 5 and sweep.num_trials == 3
    assert load_job(sweep.trial_values({"seed": 2})).arguments()["seed"] == 2
    assert sweep.job.storage_path == "/elsewhere"


def test_no_ml_library_is_loaded_for_a_refusal() -> None:
    import subprocess
    import sys

    program = (
        "import sys, raytrain_nlp.config.sweep; print([name for name in ('torch', 'ray', 'optuna', 'mlflow', "
        "'matplotlib') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_a_space_is_checked_without_a_whole_job() -> None:
    def wheres(**space: Any) -> list[str]:
        sections = {"kind": "sweep", "job": {}, "search_space": {key.replace("__", "."): x for key, x in space.items()}}
        return [problem.where for problem in check_space(SweepJob.model_validate(sections))]

    assert wheres(lora__r={"choice": [4, 8]}) == []
    assert wheres(lora__r={"multiply": ["model.name", 2]}) == ["search_space", "search_space.lora.r"]
    assert wheres(lora__r={"grid": [4, 8]}, name={"choice": ["a"]}) == ["search_space.lora.r", "search_space.name"]
