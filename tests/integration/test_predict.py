"""Predictions: as many rows as went in, in their order, equal to the exported model alone, also after a SIGKILL; every
format.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from support import run_cli, start_cli, tiny_job, wait_until, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raytrain_nlp
from raytrain_nlp.data.reading.rows import Row
from raytrain_nlp.deploy.recipe import read_recipe
from raytrain_nlp.errors import InputError
from raytrain_nlp.prediction.task_model import RowPredictor
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.verbs.predict import CHUNK_ROWS
from raytrain_nlp.verbs.predict_rows import predict_stream, rows_of_input

ROWS = 1_003


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_rows(folder / "train.jsonl", 96)
    write_rows(folder / "input.jsonl", ROWS, seed=3)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path, train_warm: Any) -> Any:
    return train_warm(tiny_job(folder, "run", training={"learning_rate": 1e-2}))


@pytest.fixture(scope="module")
def alone(trained: Any, folder: Path) -> list[dict[str, Any]]:
    """The exported model on each row alone, with transformers only."""
    model = AutoModelForSequenceClassification.from_pretrained(trained.model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.model_dir)
    found = []
    with torch.no_grad():
        for line in (folder / "input.jsonl").read_text().splitlines():
            row = json.loads(line)
            shares = model(
                **tokenizer(row["text"], truncation=True, max_length=48, return_tensors="pt")
            ).logits.softmax(-1)[0]
            found.append(
                {
                    **row,
                    "prediction": model.config.id2label[int(shares.argmax())],
                    "probabilities": dict(zip("01", shares.tolist(), strict=True)),
                }
            )
    return found


def check(rows: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert [(row["text"], row["label"]) for row in rows] == [(row["text"], row["label"]) for row in alone]
    for row, expected in zip(rows, alone, strict=True):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        sure = abs(expected["probabilities"]["0"] - 0.5) > 1e-5
        assert row["prediction"] == expected["prediction"] or not sure


@pytest.mark.quick
def test_every_row_in_order_in_every_format(
    trained: Any, folder: Path, alone: list[dict[str, Any]], shared_ray: Any
) -> None:
    result = raytrain_nlp.predict(trained.run_dir, str(folder / "input.jsonl"), folder / "out.parquet", batch_size=32)
    assert (result.rows, result.errors, result.bad_rows) == (ROWS, 0, 0)
    rows = parquet.read_table(folder / "out.parquet").to_pylist()
    check(rows, alone)
    parquet.write_table(
        parquet.read_table(folder / "out.parquet").select(["text", "label"]),
        folder / "input.parquet",
        row_group_size=100,
    )
    raytrain_nlp.predict(
        trained.run_dir, str(folder / "input.parquet"), folder / "out.csv", overrides=["workers.num_workers=1"]
    )
    with (folder / "out.csv").open(newline="") as file:
        read = [
            {**row, "label": int(row["label"]), "probabilities": json.loads(row["probabilities"])}
            for row in csv.DictReader(file)
        ]
    check(read, alone)
    assert not list(folder.glob("*.parts"))


def test_rows_in_memory_through_a_pipe_and_of_a_served_folder(
    trained: Any, folder: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The same predictions without Ray; what cannot be read is left out and told, what has no prediction says why."""
    lines = (folder / "input.jsonl").read_bytes().splitlines(keepends=True)
    predictor = raytrain_nlp.load_predictor(trained.run_dir)
    found = predictor([json.loads(line) for line in lines[:300]])
    check([{**json.loads(line), **row} for line, row in zip(lines, found, strict=False)], alone[:300])

    observer, told, output = Observer(), [], io.BytesIO()
    observer.warn = told.append
    mixed = io.BytesIO(b"".join([lines[0], b"not json\n", b"\n", b'{"text": null}\n', *lines[1:300]]))
    rows = rows_of_input(["-"], mixed, trained.run_dir, "")
    result = predict_stream(predictor, rows, output, "", observer)
    assert (result.rows, result.errors, result.bad_rows) == (301, 1, 1)
    assert len(told) == 1 and told[0].startswith("--input: line 2 is left out: not JSON (")
    written = [json.loads(line) for line in output.getvalue().splitlines()]
    assert written.pop(1) == {"text": None, "error": "field 'text' is null"}
    check(written, alone[:300])
    with pytest.raises(InputError, match="has a column 'error' already"):
        predict_stream(predictor, iter([Row(0, {"text": None, "error": "mine"})]), io.BytesIO(), "", observer)

    exported = raytrain_nlp.export(trained.run_dir, tmp_path / "model", serve=True)
    served = RowPredictor(read_recipe(Path(exported.output), use_gpu=False))([json.loads(line) for line in lines[:300]])
    check([{**json.loads(line), **row} for line, row in zip(lines, served, strict=False)], alone[:300])


def test_killed_and_run_again(
    trained: Any, folder: Path, alone: list[dict[str, Any]], tmp_path: Path, shared_ray: Any, _ray: str
) -> None:
    """SIGKILL between the first part and the second: the second command makes the rest, and no row is there twice."""
    output = tmp_path / "out.jsonl"
    arguments = (
        "predict",
        trained.run_dir,
        "--input",
        str(folder / "input.jsonl"),
        "--output",
        str(output),
        "--set",
        "workers.num_workers=1",
    )
    shared_ray(hold=True)
    driver = start_cli(*arguments, address=_ray)
    parts = Path(f"{output}.parts")

    def half() -> bool:
        assert driver.poll() is None, driver.communicate()
        return bool(list(parts.glob("part-*")))

    wait_until(half, 120, "the first part")
    os.kill(driver.pid, 9)
    driver.communicate()
    assert not output.exists()
    shared_ray()
    again = run_cli(*arguments, "--json", address=_ray)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert result["rows"] == ROWS and result["found_rows"] in {CHUNK_ROWS, ROWS - CHUNK_ROWS}
    check([json.loads(line) for line in output.read_text().splitlines()], alone)


def test_rows_without_a_prediction_are_kept_and_told(trained: Any, tmp_path: Path, shared_ray: Any) -> None:
    lines = [
        '{"text": "ada yes", "extra": {"a": [1]}}',
        "not json",
        '{"text": null, "extra": 3}',
        '{"text": "bell no", "extra": null}',
    ]
    (tmp_path / "input.jsonl").write_text("\n".join(lines))
    result = raytrain_nlp.predict(trained.run_dir, str(tmp_path / "input.jsonl"), tmp_path / "out.jsonl", prefix="my_")
    assert (result.rows, result.errors, result.bad_rows) == (3, 1, 1)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["ada yes", None, "bell no"]
    assert [row["my_error"] for row in rows] == [None, "field 'text' is null", None] and rows[1][
        "my_prediction"
    ] is None
    assert [json.loads(row["extra"]) if row["extra"] else None for row in rows] == [{"a": [1]}, 3, None]
    (bad,) = [json.loads(line) for line in Path(result.quarantine).read_text().splitlines()]
    assert (bad["line"], bad["row"]) == (2, "not json")


def test_wrong_arguments_are_one_line(trained: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.jsonl").touch()
    (tmp_path / "other.jsonl").write_text('{"words": "x"}')
    data = str(folder / "input.jsonl")
    for arguments, expected in [
        (["--input", data, "--output", str(tmp_path / "taken.jsonl")], "--output: is there already"),
        (["--input", data, "--output", str(tmp_path / "out.txt")], "--output: has no known suffix"),
        (
            ["--input", str(tmp_path / "other.jsonl"), "--output", str(tmp_path / "out.jsonl")],
            "--input: no column 'text'",
        ),
        (
            ["--input", data, "--output", str(tmp_path / "out.jsonl"), "--generation", "beams"],
            "--generation: is not KEY=VALUE",
        ),
    ]:
        finished = run_cli("predict", trained.run_dir, *arguments)
        assert finished.returncode == 2 and expected in finished.stderr and len(finished.stderr.splitlines()) <= 3, (
            finished.stderr
        )
