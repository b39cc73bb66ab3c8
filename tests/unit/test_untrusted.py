"""What somebody else may have written (YAML, JSON, compressed rows) is refused in one line, before it costs memory."""

from __future__ import annotations

import ast
import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml

import raytrain_nlp
from raytrain_nlp.certificate.page import check_certificate
from raytrain_nlp.checkpoint.manifest import Damaged, read_checkpoint
from raytrain_nlp.config import load_job
from raytrain_nlp.config.yaml_text import parse_yaml
from raytrain_nlp.data.reading import compressed
from raytrain_nlp.data.reading.features import class_names
from raytrain_nlp.data.reading.readers import read_rows
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.deploy.recipe import RECIPE, read_recipe
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.weight_files import check_weights
from raytrain_nlp.paths import read_json
from raytrain_nlp.storage import untrusted
from raytrain_nlp.storage.untrusted import parse_json, read_json_file
from raytrain_nlp.tracking.events import read_events

ROOT = Path(raytrain_nlp.__file__).parent
DEEP = '{"a":' + "[" * 200_000
JOB = {
    "task": {"type": "causal-lm"},
    "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
    "data": {"train": "x.txt"},
}
OWN_JSON = {
    "cpu/fork_launcher.py", "cpu/fork_server.py", "cluster/connection.py", "cluster/local_ray.py",
    "cluster/ray_head.py", "memory/available.py",  # of processes that this one has started
    "prediction/actor.py", "prediction/batches.py", "prediction/parts.py", "tasks/answers.py",  # made a moment before
    "data/reading/encodings.py", "data/reading/json_rows.py",  # rows, each of which may be a bad one
    "storage/untrusted.py",
}  # fmt: skip
"""Modules that read JSON by themselves, because nobody else may have written it, or because they tell more of it."""


def aliases(levels: int, width: int = 10) -> str:
    """A text of `levels` lines that stands for width**levels values."""
    lines = [f"x0: &x0 [{', '.join('a' * width)}]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_nobody_reads_yaml_or_json_of_others_by_themselves() -> None:
    """The kind, not its cases: a new reader of files goes through the two functions that are held below."""
    found = {
        (path.relative_to(ROOT).as_posix(), f"{node.func.value.id}.{node.func.attr}")
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    assert {path for path, name in found if name in ("json.loads", "json.load")} == OWN_JSON
    assert {path for path, name in found if name in ("yaml.load", "yaml.safe_load", "yaml.unsafe_load")} == {
        "config/yaml_text.py"
    }
    pickles = {"pickle", "cloudpickle", "dill", "joblib", "torch.load", "marshal", "shelve"}
    assert not [(path, name) for path, name in found if name in pickles or name.partition(".")[0] in pickles]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (aliases(8), "aliases stand for more than"),
        ("a: &a [1, *a]", "an alias stands for what it is a part of"),
        ("a: &a {b: {c: *a}}", "an alias stands for what it is a part of"),
        ("base: &b " + "x" * 100_000 + "\nall: [" + ", ".join(["*b"] * 1_000) + "]", "aliases stand for more than"),
        ("[" * 100_000, "nested too deep"),
        ("a: 2024-13-45", "month must be in"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: 1\na: 2", "stands there twice"),
    ],
    ids=["billion", "itself", "below itself", "long text", "deep", "date", "code", "name", "twice"],
)
def test_yaml_that_is_an_attack_is_no_yaml(text: str, why: str) -> None:
    with pytest.raises(yaml.YAMLError, match=why):
        parse_yaml(text)


def test_aliases_as_people_use_them_are_read() -> None:
    text = "base: &base {lr: 1, layers: [1, 2]}\nruns:\n" + "".join(
        f"  r{i}: {{<<: *base, seed: {i}}}\n" for i in range(500)
    )
    assert parse_yaml(text)["runs"]["r7"] == {"lr": 1, "layers": [1, 2], "seed": 7}


def test_a_job_file_of_aliases_of_aliases_is_one_line(tmp_path: Path) -> None:
    """Where a key takes anything, so that the keys' own checks would not stop it."""
    job = tmp_path / "job.yaml"
    inner = "    " + aliases(8).strip().replace("\n", "\n    ")
    job.write_text(
        f"task: {{type: causal-lm}}\ndata: {{train: x}}\nmodel:\n  tokenizer: train\n  config:\n    model_type: gpt2\n"
        f"{inner}\n"
    )
    with pytest.raises(InputError) as caught:
        load_job(str(job))
    assert str(caught.value).startswith(f"{job}:1: is not YAML (its aliases stand for more than")
    with pytest.raises(InputError, match="the value is not YAML") as caught:
        load_job(JOB, ["model.config.x=" + "[" * 50_000])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", [DEEP, DEEP.replace("[", '{"a":'), '{"a": ' + "1" * 5_000 + "}", "{", "\ufeff{}"])
def test_json_that_is_none_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert not isinstance(caught.value, RecursionError)


def test_a_file_larger_than_any_here_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "_MOST_BYTES", 1 << 20)
    file = tmp_path / "run.json"
    file.write_text('"' + "x" * (2 << 20) + '"')
    with pytest.raises(ValueError, match="more than 1 MiB"):
        read_json_file(file)
    with pytest.raises(InputError, match="more than 1 MiB"):
        read_json(file)


def _weights(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(DEEP)) + DEEP.encode())
    return str(check_weights(str(folder), "model", True, False)[0])


def _index(folder: Path) -> str:
    (folder / "config.json").write_text(DEEP)
    (folder / "model.safetensors.index.json").write_text(DEEP)
    return str(check_weights(str(folder), "model", True, False)[0])


def _manifest(folder: Path) -> str:
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "manifest.json").write_text(DEEP)
    found = read_checkpoint(folder / "checkpoint-5")
    assert isinstance(found, Damaged)
    return found.why


def _refused(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return str(caught.value)


def _at(folder: Path, name: str) -> Path:
    (folder / name).write_text(DEEP)
    return folder / name


def _saved(folder: Path) -> str:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "x"}], "_indices_data_files": 1' + DEEP)
    return _refused(lambda: find_files([str(folder)], "data.train"))


READERS: dict[str, Callable[[Path], str]] = {
    "run.json": lambda folder: _refused(lambda: read_json(_at(folder, "run.json"))),
    "weights": _weights,
    "index": _index,
    "manifest": _manifest,
    "deepspeed": lambda folder: _refused(
        lambda: load_job({**JOB, "deepspeed": {"config_file": str(_at(folder, "ds.json"))}})
    ),
    "certificate": lambda folder: _refused(lambda: check_certificate(_at(folder, "certificate.json"))),
    "recipe": lambda folder: (_at(folder, RECIPE), _refused(lambda: read_recipe(folder, False)))[1],
    "saved dataset": _saved,
    "events": lambda folder: str(list(read_events(_at(folder, "events.jsonl")))),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_json_of_others_says_so_in_one_line(tmp_path: Path, reader: str) -> None:
    """Nothing raises `RecursionError`, which nobody expects; no message repeats the content."""
    told = READERS[reader](tmp_path)
    assert told
    assert "\n" not in told and len(told) < 400


@pytest.mark.parametrize("metadata", [DEEP, "[]", '{"info": null}', '{"info": {"features": [1]}}', "1"], ids=len)
def test_metadata_that_another_library_has_left_is_none(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"label": [1]}).replace_schema_metadata({b"huggingface": metadata.encode()})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert class_names(find_files([str(tmp_path / "x.parquet")], "data.train")[0], "label") is None


OUTSIDE = ["../outside", "/etc/hostname", "a/../../outside", "a\\..\\x", "", None, 7, ["x"]]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
@pytest.mark.parametrize("key", ["_data_files", "_indices_data_files"])
def test_a_saved_dataset_names_files_of_its_folder(tmp_path: Path, name: object, key: str) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for file in (tmp_path / "outside", folder / "own.arrow"):
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("n", pa.int64())])) as writer:
            writer.write_table(pa.table({"n": [1]}))
    state = {"_data_files": [{"filename": "own.arrow"}], key: [{"filename": name}]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"state.json: the name of a file in it .* Restore the file"):
        rows_of(folder)


@pytest.mark.parametrize("splits", [["../outside"], [None], "train", None, 3])
def test_a_saved_dataset_names_splits_of_its_folder(tmp_path: Path, splits: object) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jsonl").write_text('{"text": "a"}')
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(InputError, match="dataset_dict.json"):
        rows_of(tmp_path / "saved")


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_an_index_names_weights_of_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    (problem,) = check_weights(str(tmp_path), "model", True, False)
    assert str(problem).startswith("model: the name of a file in model.safetensors.index.json ")


@pytest.mark.parametrize("name", ["rows.zip", "rows.jsonl.zip", "rows.tar", "rows.tar.gz", "rows.tgz", "x.pkl"])
def test_archives_are_not_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match="unknown file format"):
        find_files([str(tmp_path / name)], "data.train")


def rows_of(path: Path) -> list[Any]:
    (file,) = find_files([str(path)], "data.train")
    return [row for piece in split_file(file) for row in read_rows(piece)]


@pytest.mark.parametrize(
    ("name", "head", "unit"),
    [
        ("x.jsonl.gz", b'{"text": "', b"a"),
        ("x.jsonl.gz", b"", b'{"text": "aaaa"}\n'),
        ("x.json.gz", b"[", b" "),
        ("x.csv.gz", b"text\n", b"a"),
        ("x.tsv.gz", b"text\n", b'"a\n'),
        ("x.txt.gz", b"", b"\n"),
        ("x.conll.gz", b"", b"a B\n"),
    ],
    ids=["one line", "rows", "array", "csv", "tsv", "empty lines", "one sentence"],
)
def test_rows_that_expand_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, unit: bytes
) -> None:
    monkeypatch.setattr(compressed, "_ALWAYS", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(head + unit * ((4 << 20) // len(unit))))
    with pytest.raises(InputError, match=r"expands to more than [12] MB, as no rows of text do"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("kind", ["parquet", "dictionary", "arrow stream", "arrow file"])
def test_columns_that_expand_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """20,000 rows of one text: a file of kilobytes, whose rows have 200 MB."""
    monkeypatch.setattr(compressed, "_ALWAYS", 1 << 20)
    monkeypatch.setattr(compressed, "_TIMES_OF_COLUMNS", 1)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["a" * 10_000]))
    file = tmp_path / ("x.parquet" if kind in ("parquet", "dictionary") else "x.arrow")
    table = pa.table({"text": texts if kind == "dictionary" else texts.dictionary_decode()})
    if file.suffix == ".parquet":
        parquet.write_table(table, file, compression="zstd")
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with pa.OSFile(str(file), "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=100)
    with pytest.raises(InputError, match="expands to more than"):
        rows_of(file)


def test_compressed_rows_are_read_as_before(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "n": i} for i in range(3_000)]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [row.values for row in rows_of(tmp_path / "x.jsonl.gz")] == rows
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, new(sink, pa.schema([("n", pa.int64())])) as writer:
            writer.write_table(pa.table({"n": list(range(50))}), max_chunksize=7)
        assert [row.values["n"] for row in rows_of(tmp_path / "x.arrow")] == list(range(50))
