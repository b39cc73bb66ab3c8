"""`predict` adds columns: where the input has one of these names already, that is told before work begins, with the
flag that helps.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning import inputs
from raytrain_nlp.planning.inputs import check_free
from raytrain_nlp.prediction.actor import Predictor
from raytrain_nlp.prediction.batches import ERRORS
from raytrain_nlp.prediction.files import BAD
from raytrain_nlp.tasks import build_task
from raytrain_nlp.verbs.predict import input_files

TASKS: dict[str, dict[str, Any]] = {
    "classes": {"type": "text-classification"},
    "number": {"type": "text-classification", "problem_type": "regression"},
    "text": {"type": "causal-lm"},
}


def job_of(task: str) -> Any:
    return load_job({"task": TASKS[task], "model": {"name_or_path": "x"}, "data": {"train": "x"}})


def written(folder: Path, kind: str, row: dict[str, Any]) -> Path:
    path = folder / f"in.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist([row]), path)
    elif kind == "csv":
        path.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    else:
        path.write_text(json.dumps(row if kind == "jsonl" else [row]) + "\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    ("task", "prefix", "column", "clashes"),
    [
        ("classes", "", "prediction", True), ("classes", "", "probabilities", True), ("classes", "", "error", True), ("classes", "m_", "m_error", True),  # noqa: E501
        ("classes", "m_", "prediction", False), ("number", "", "probabilities", False), ("number", "", "error", True), ("text", "", "prediction", True),  # noqa: E501
        ("text", "", "probabilities", False), ("classes", "", "id", False),
    ],
)  # fmt: skip
def test_names_that_predictions_would_take(
    tmp_path: Path, kind: str, task: str, prefix: str, column: str, clashes: bool
) -> None:
    path = written(tmp_path, kind, {"text": "hello", column: "mine"})
    if not clashes:
        assert len(input_files(str(path), job_of(task), prefix)) == 1
        return
    with pytest.raises(InputError) as caught:
        input_files(str(path), job_of(task), prefix)
    line = (
        f"--input: has a column '{column}' already ({path}), where predictions would go. Give the new ones a prefix, "
        f"e.g. --prefix model_."
    )
    assert str(caught.value) == line


def test_a_name_far_behind_and_in_another_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON Lines may have it in any row; of very large files the first part is read."""
    lines = [json.dumps({"text": "x" * 100, "id": i}) for i in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, json.dumps({"text": "x", "error": "mine"})]))
    files = find_files([str(tmp_path / "*.jsonl")], "")
    assert [problem.what for problem in check_free(files, ["error"], "--input")] == [
        f"has a column 'error' already ({files[1].path}), where predictions would go"
    ]
    monkeypatch.setattr(inputs, "_SEARCHED_BYTES", 1)
    monkeypatch.setattr(inputs, "_LEAST_BYTES", 1 << 12)
    assert check_free(files, ["error"], "--input") == []


@pytest.mark.parametrize("task", sorted(TASKS))
def test_tasks_say_what_they_add(task: str) -> None:
    assert build_task(job_of(task).task).prediction_columns[0] == "prediction"


def test_a_name_behind_what_was_read_ahead_is_refused_when_it_comes(tmp_path: Path) -> None:
    """Nothing of the user's is replaced by a prediction, however late the column turns up."""
    predictor = Predictor.__new__(Predictor)
    predictor._task, predictor._spec = (
        build_task(job_of("classes").task),
        SimpleNamespace(prefix="m_", parts=str(tmp_path)),
    )
    table = pa.table({"text": ["x"], "m_error": ["mine"]}).replace_schema_metadata({BAD: "[]", ERRORS: "{}"})
    with pytest.raises(InputError, match="has a column 'm_error' already"):
        predictor._write("part-000000-0000000.arrow", table, [{"prediction": "a", "probabilities": {}}])
    assert list(tmp_path.iterdir()) == []
