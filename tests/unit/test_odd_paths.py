"""Paths of any spelling and length: storage that becomes a URI, a relative RUN, a TMPDIR longer than a socket's name
may be.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sqlite3
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from mlflow.store.db.utils import _make_parent_dirs_if_sqlite
from mlflow.utils.uri import extract_db_type_from_uri
from sqlalchemy import create_engine

from raytrain_nlp.cpu import fork_server
from raytrain_nlp.data.reading.readers import Row, read_rows
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.host.sockets import MOST_BYTES, RAY_BYTES, ray_folder, short_name
from raytrain_nlp.prediction.files import list_parts, open_output, part_name
from raytrain_nlp.run.saved_run import at_hand, find_run
from raytrain_nlp.tracking.address import default_uri

ODD = ["plain", "a b", "what?x=1", "100%", "p%20q", "h#1", "ümläut 中", "a&b=c;d", "x+y", "r #1 100% ü?x=1"]


@pytest.mark.parametrize("name", ODD)
def test_database_lies_in_its_storage(tmp_path: Path, name: str) -> None:
    """By the way SQLAlchemy reads the address: the file is there, and nothing is beside the folder, also where MLflow
    makes the database's parents.
    """
    storage = tmp_path / name
    storage.mkdir()
    uri = default_uri(storage)
    assert extract_db_type_from_uri(uri) == "sqlite"
    _make_parent_dirs_if_sqlite(uri)
    engine = create_engine(uri)
    with engine.connect() as connection:
        connection.exec_driver_sql("create table t (x)")
    engine.dispose()
    assert os.listdir(storage) == ["mlflow.db"] and os.listdir(tmp_path) == [name]
    assert sqlite3.connect(storage / "mlflow.db").execute("select name from sqlite_master").fetchall() == [("t",)]


@pytest.mark.parametrize("name", ODD)
def test_files_and_parts_in_odd_folders(tmp_path: Path, name: str) -> None:
    """Data are found and read there, and outputs written, as in any other folder."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.jsonl").write_text('{"text": "x"}\n')
    for spec in (tmp_path / name, tmp_path / name / "a.jsonl", f"{tmp_path / name}/*.jsonl"):
        rows = [row for file in find_files([str(spec)], "") for piece in split_file(file) for row in read_rows(piece)]
        assert [row.values for row in rows if isinstance(row, Row)] == [{"text": "x"}]
    with open_output(f"{tmp_path / name}/parts/{part_name(0, 0)}") as file:
        file.write(b"x")
    assert list_parts(f"{tmp_path / name}/parts") == [f"{tmp_path / name}/parts/{part_name(0, 0)}"]


@pytest.mark.parametrize("given", ["runs/r", "./runs/r", "runs/x/../r", "runs/r/"])
def test_a_relative_run_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (tmp_path / "runs" / "r").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert at_hand(given) == tmp_path / "runs" / "r"
    monkeypatch.chdir(tmp_path / "runs" / "r")
    assert at_hand(".") == tmp_path / "runs" / "r" and at_hand(".").name == "r"


def test_names_of_a_job_mean_what_they_meant_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, model and modules of a run are found from another folder too, and are not those of the same names there."""
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        (folder / "base").mkdir(parents=True)
        for name in ("a.jsonl", "b.jsonl"):
            (folder / name).write_text('{"text": "x", "label": 0}\n')
    sources = {
        "one": "a.jsonl",
        "two": ["*.jsonl", "base:train"],
        "hub": "hf://a/b:test",
        "far": "s3://a/b",
        "gone": "c.jsonl",
        "whole": str(other / "a.jsonl"),
    }
    job = {
        "task": {"type": "text-classification"},
        "model": {"name_or_path": "base", "tokenizer": "gpt2"},
        "data": {"train": "a.jsonl", "validation": sources},
    }
    run = home / "runs" / "r"
    (run / "model").mkdir(parents=True)
    (run / "model" / "tokenizer_config.json").write_text("{}")
    record = {"job": {"name": "r", **job}, "folder": str(home)}
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(other)
    found = find_run("../home/runs/r")
    there = {**sources, "one": str(home / "a.jsonl"), "two": [str(home / "*.jsonl"), str(home / "base:train")]}
    assert (
        found.job.data.validation == there
        and found.job.data.train == str(home / "a.jsonl")
        and found.code_folder == str(home)
    )
    assert (found.job.model.name_or_path, found.job.model.tokenizer, found.base) == (
        str(home / "base"),
        "gpt2",
        str(home / "base"),
    )
    monkeypatch.chdir(home)
    assert find_run("runs/r").job.data.validation == sources and find_run("runs/r").base == "base"
    (run / "run.json").write_text(json.dumps({**record, "folder": str(tmp_path / "of another machine")}))
    assert find_run("runs/r").job.data.validation == sources and find_run("runs/r").code_folder == str(home)


# TMPDIR


def long_folder(tmp_path: Path, length: int, name: str = "t") -> Path:
    """A folder whose path has so many bytes."""
    folder = tmp_path / (name * (length - len(str(tmp_path)) - 1))
    folder.mkdir()
    return folder


@pytest.fixture
def short_tmp() -> Path:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("length", [30, 36, 37, 40, 65, 100, 200])
def test_ray_gets_a_folder_that_its_sockets_fit_into(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """By binding the longest socket Ray makes; a TMPDIR that is short enough is left alone, of the others the files lie
    in TMPDIR.
    """
    folder = long_folder(short_tmp, length)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    chosen = ray_folder()
    fits = len(str(folder)) + len("/ray") + RAY_BYTES <= MOST_BYTES
    assert (chosen is None) == fits
    path = Path(chosen or folder / "ray") / "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.9"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    assert (folder / "ray" / path.parent.parent.name / "sockets" / path.name).is_socket()


def test_folder_with_blanks_gets_a_plain_name(short_tmp: Path) -> None:
    (short_tmp / "a b").mkdir()
    name = short_name(short_tmp / "a b" / "socket")
    assert (
        " " not in str(name)
        and name.parent.resolve() == (short_tmp / "a b").resolve()
        and name == short_name(short_tmp / "a b" / "socket")
    )


def test_fork_server_listens_in_a_long_folder(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket has a short name, by which the launcher knows it, and lies in TMPDIR."""
    folder = long_folder(short_tmp, 150)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(fork_server.subprocess, "Popen", mock.MagicMock())
    import ray._private.services as services

    with fork_server.forked_processes():
        launcher = Path(services.sys.executable)
        address = shlex.split(launcher.read_text().splitlines()[1])[5]
        assert (
            max(len(address), len(str(launcher))) <= MOST_BYTES
            and Path(address).is_socket()
            and launcher.resolve().is_relative_to(folder)
        )
