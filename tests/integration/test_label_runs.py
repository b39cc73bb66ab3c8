"""Runs whose labels come from the data: training and evaluation agree on what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from support import tiny_job

import raytrain_nlp
from raytrain_nlp.run.saved_run import find_run

GOOD, BAD = "good fine nice good", "bad poor awful bad"


def job(folder: Path, name: str, train: Path, **sections: Any) -> dict[str, Any]:
    data = {"train": str(train), "validation": str(train)}
    return tiny_job(folder, name, **{"deepspeed": {"zero_stage": 0}, **sections, "data": data})


def test_multi_hot_and_declared_names_through_a_run(tmp_path: Path, train_warm: Any) -> None:
    """Evaluation reads the lists as training did, with the names of the run; resuming a finished run finds the same job."""
    lists = [[float(i % 2 == 0), float(i % 2), float(i % 3 == 0)] for i in range(48)]
    rows = [{"text": f"{(GOOD, BAD)[i % 2]} {'third' if i % 3 == 0 else ''} {i}", "label": row} for i, row in enumerate(lists)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    given = job(tmp_path, "hot", tmp_path / "data", task={"problem_type": "multi_label_classification", "label_names": ["a", "b", "c"]})
    result = train_warm(given)
    assert result.labels == ["a", "b", "c"] and find_run(result.run_dir).job.task.multi_hot is True
    found = raytrain_nlp.evaluate(result.run_dir, overrides=["workers.num_workers=1"], scores=tmp_path / "scores.jsonl")
    assert found.metrics["eval_loss"] == pytest.approx(result.metrics["eval_loss"], abs=1e-5) and found.rows == 48
    scores = [json.loads(line)["label"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert sorted(map(tuple, scores)) == sorted(tuple(name for name, value in zip("abc", row, strict=True) if value) for row in lists)
    assert raytrain_nlp.train(given, resume=True).run_dir == result.run_dir
