"""`check --calibrate`: real steps of a ZeRO-3 job on two workers, its figures, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import tiny_job, write_rows

import raytrain_nlp
from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.run.estimates import find_estimate


def test_calibration_of_two_sharded_workers(tmp_path: Path, shared_ray: Any) -> None:
    write_rows(tmp_path / "train.jsonl", 400)
    write_rows(tmp_path / "validation.jsonl", 30, seed=1)
    job = tiny_job(
        tmp_path,
        "planned",
        data={"validation": str(tmp_path / "validation.jsonl")},
        training={"num_train_epochs": 3},
        deepspeed={"zero_stage": 3},
    )
    report = raytrain_nlp.check(job, calibrate=True, calibration_steps=8, price=36.0)
    found = report.calibration
    assert (report.total_steps, found.steps, found.evaluations, len(found.peak_memory)) == (
        75,
        4,
        3,
        2,
    )  # of 8 steps half are warm-up, the first is no interval
    assert found.rows_per_second == pytest.approx(16 / found.step_seconds)
    assert found.total_seconds == pytest.approx(
        found.start_seconds + 74 * found.step_seconds + 3 * found.evaluation_seconds
    )
    assert found.cost == pytest.approx(found.total_seconds / 100) and found.evaluation_seconds > 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        ".cache",
        "mlflow.db",
    }  # the tables are the tests' own
    assert sum(report.memory.parts.values()) == report.memory.total and report.memory.parts["process"] > 100e6
    assert max(found.peak_memory) > report.memory.parts["process"] / 2
    kept = find_estimate(settled(raytrain_nlp.load_job(job)).job, tmp_path / "runs")  # as its run will
    assert kept == {"seconds": found.total_seconds, "step_seconds": found.step_seconds}
    table = report.rows_for_people()
    assert (
        "3 evaluations" in table["time of the run"]
        and "rows/s" in table["time of a step"]
        and "process" in "".join(table)
    )
