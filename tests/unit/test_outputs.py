"""Predictions: nothing is published half, and what an interrupted prediction has made is never lost by following our
advice.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.prediction.files import list_parts, open_output, part_name, write_parts
from raytrain_nlp.run.saved_run import Run, Weights


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder, by its path and as an address; and objects, which fsspec keeps in this process."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return {
        "folder": str(tmp_path / "out"),
        "file://": f"file://{tmp_path}/out",
        "memory://": f"memory://{uuid.uuid4().hex}",
    }[request.param]


def content(path: str) -> bytes | None:
    filesystem, inner = fsspec.core.url_to_fs(path)
    return filesystem.cat_file(inner) if filesystem.exists(inner) else None


def names(place: str) -> list[str]:
    filesystem, inner = fsspec.core.url_to_fs(place)
    return sorted(name.rsplit("/", 1)[-1] for name in filesystem.find(inner)) if filesystem.exists(inner) else []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit], ids=lambda error: error.__name__)
def test_an_exception_publishes_nothing(place: str, error: type[BaseException]) -> None:
    with pytest.raises(error), open_output(f"{place}/a") as file:
        file.write(b"half")
        raise error
    assert content(f"{place}/a") is None and not names(place)
    with open_output(f"{place}/a") as file:
        file.write(b"whole")
    with pytest.raises(error), open_output(f"{place}/a") as file:
        file.write(b"half of another")
        raise error
    assert content(f"{place}/a") == b"whole" and names(place) == ["a"]


def write_part(place: str, number: int, rows: int) -> str:
    name = part_name(0, number)
    table = pa.table({"row": list(range(rows))})
    with open_output(f"{place}/out.jsonl.parts/{name}") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return name


def test_a_part_that_cannot_be_read_publishes_no_output(place: str) -> None:
    """The output is written part by part: the second one is damaged."""
    write_part(place, 0, 3)
    with open_output(f"{place}/out.jsonl.parts/{part_name(0, 1)}") as file:
        file.write(b"no arrow")
    parts = list_parts(f"{place}/out.jsonl.parts")
    assert len(parts) == 2
    with pytest.raises(pa.ArrowInvalid):
        write_parts(parts, f"{place}/out.jsonl", "jsonl")
    assert content(f"{place}/out.jsonl") is None and len(list_parts(f"{place}/out.jsonl.parts")) == 2


MINE, OTHER = {"run": "a", "weights": "model"}, {"run": "b", "weights": "model"}


def begin(place: str, what: dict[str, Any] = MINE, overwrite: bool = False) -> list[str]:
    from raytrain_nlp.prediction.parts import find_parts

    return find_parts(f"{place}/out.jsonl", f"{place}/out.jsonl.parts", what, overwrite)


def test_finished_parts_are_found_again_also_with_overwrite(place: str) -> None:
    from raytrain_nlp.prediction.parts import join_parts

    assert begin(place) == []
    made = [write_part(place, number, 2) for number in range(3)]
    assert begin(place) == made and begin(place, overwrite=True) == made
    with open_output(f"{place}/out.jsonl") as file:
        file.write(b"what an older version has left")
    with pytest.raises(
        InputError, match=r"is there already .* add --overwrite; the 3 parts that are made already are kept"
    ):
        begin(place)
    assert begin(place, overwrite=True) == made  # the advice, followed
    assert join_parts(f"{place}/out.jsonl", f"{place}/out.jsonl.parts", "jsonl", set(made), "") == {
        "rows": 6, "errors": 0, "bad_rows": 0, "found_rows": 6, "quarantine": None
    }  # fmt: skip
    assert names(place) == ["out.jsonl"] and content(f"{place}/out.jsonl").count(b"\n") == 6


def test_parts_of_another_prediction_are_named_and_stay_until_they_are_given_up(place: str) -> None:
    begin(place)
    made = [write_part(place, number, 2) for number in range(2)]
    with pytest.raises(
        InputError, match=r"is of another model, input or device.*--overwrite, which deletes these 2 parts"
    ):
        begin(place, OTHER)
    assert begin(place) == made
    assert begin(place, OTHER, overwrite=True) == [] and list_parts(f"{place}/out.jsonl.parts") == []
    assert begin(place, OTHER) == []


@pytest.mark.parametrize("note", [b"", b"{", b"null", b"[]", None], ids=repr)
def test_parts_that_do_not_say_whose_they_are_are_nobodys(place: str, note: bytes | None) -> None:
    write_part(place, 0, 2)
    if note is not None:
        with open_output(f"{place}/out.jsonl.parts/predict.json") as file:
            file.write(note)
    with pytest.raises(InputError, match="is of another model, input or device"):
        begin(place)
    assert len(list_parts(f"{place}/out.jsonl.parts")) == 1
    assert begin(place, overwrite=True) == []


def test_what_parts_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, never times: a copy from a bucket is made anew for each command."""
    from raytrain_nlp.prediction.parts import Layout, describe_prediction

    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_preprocess_of_parts.py").write_text("def f(row):\n    return row\n")
    values = {
        "task": {"type": "causal-lm"},
        "model": {"name_or_path": "x"},
        "data": {"train": "x.txt", "max_length": 16},
    }
    paths, weights = RunPaths(tmp_path, "run"), tmp_path / "run" / "model"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(os.urandom(3_000_000))

    def what(
        name: str = "model",
        options: dict[str, Any] | None = None,
        prefix: str = "",
        rows: int = 512,
        dtype: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        job = load_job({**values, **more})
        return describe_prediction(
            Run(paths, job, [], weights, {}, tmp_path, None),
            Weights(name, weights),
            job,
            [],
            options or {},
            prefix,
            Layout(1 << 20, rows),
            dtype,
        )

    first = json.dumps(what())
    os.utime(weights / "model.safetensors", (1, 1))
    assert json.dumps(what()) == first
    others = [
        what("checkpoint-5"),
        what(rows=2_048),
        what(dtype="bfloat16"),
        what(options={"num_beams": 2}),
        what(prefix="a_"),
        what(data={"train": "x.txt", "max_length": 32}),
        what(trainer={"preprocess": "user_preprocess_of_parts:f"}),
    ]
    changed = bytearray((weights / "model.safetensors").read_bytes())
    changed[1_500_000:] = os.urandom(1_500_000)
    (weights / "model.safetensors").write_bytes(changed)
    assert len({first, *(json.dumps(other) for other in others), json.dumps(what())}) == len(others) + 2
