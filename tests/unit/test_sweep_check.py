"""`check` of a sweep: the trial it plans, and what it refuses. The job of one run is left to the check of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import plain_job

import raytrain_nlp.tuning.check as sweep_check
from raytrain_nlp.config import TrainJob, load_job
from raytrain_nlp.errors import InputError

SPACE = {
    "training.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "lora.r": {"choice": [4, 64, 8]},
    "lora.lora_alpha": {"multiply": ["lora.r", 2]},
}


class Report:
    """Of the check of a run, in its place: the job that was checked."""

    def rows_for_people(self) -> dict[str, str]:
        return {"job": "j", "steps": "9"}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainJob, dict[str, Any]]]:
    heard: list[tuple[TrainJob, dict[str, Any]]] = []
    monkeypatch.setattr(sweep_check, "check_run", lambda job, **more: heard.append((job, more)) or Report())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return heard


def sweep_of(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    base = plain_job(tmp_path, "base", data={"validation": "v.jsonl"}, lora={"r": 8, "lora_alpha": 16})
    return {"kind": "sweep", "name": "s", "job": base, "search_space": SPACE, "num_samples": 5, **sections}


def test_the_largest_trial_is_planned(tmp_path: Path, checked: Any) -> None:
    plan = sweep_check.check(sweep_of(tmp_path, max_concurrent_trials=3), worker_memory="8GB")
    assert isinstance(plan, sweep_check.SweepPlan)
    job, options = checked[0]
    assert job.lora["r"] == 64 and job.lora["lora_alpha"] == 128 and options["worker_memory"] == "8GB"
    rows = plan.rows_for_people()
    assert rows["trials"] == "5, 3 at a time, compared by eval_loss (min)"
    assert rows["  training.learning_rate"] == "loguniform [1e-05, 0.001]"
    assert rows["  lora.lora_alpha"] == 'multiply ["lora.r", 2.0]' and rows["  steps"] == "9"


def test_a_plan_for_another_cluster_names_no_number_of_trials_at_a_time(tmp_path: Path, checked: Any) -> None:
    plan = sweep_check.check(sweep_of(tmp_path), cluster="cluster.yaml")
    assert plan.rows_for_people()["trials"] == "5, compared by eval_loss (min)"
    assert checked[0][1]["cluster"] == "cluster.yaml"


def test_the_job_of_a_run_is_left_to_the_check_of_runs(tmp_path: Path, checked: Any) -> None:
    values = plain_job(tmp_path, "base", data={"validation": "v.jsonl"})
    for job in (values, load_job(values)):
        assert isinstance(sweep_check.check(job, overrides=["seed=3"]), Report)
    assert [options["overrides"] for _, options in checked] == [["seed=3"], ["seed=3"]]


def test_what_is_wrong_with_a_sweep_is_told(tmp_path: Path, checked: Any) -> None:
    with pytest.raises(InputError, match=r"metric: .*eval_bleu") as told:
        sweep_check.check(sweep_of(tmp_path, metric="eval_bleu"))
    assert not checked, told
    with pytest.raises(InputError, match=r"search_space.training.learning_rate"):
        sweep_check.check(sweep_of(tmp_path, search_space={"training.learning_rate": {"choice": ["high"]}}))
