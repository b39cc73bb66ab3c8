"""Names that come from storage stay in their folder, whoever wrote them and wherever they become paths."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_bucket import FakeObjects, use_fake_bucket

from raytrain_nlp.data.shards import LENGTHS, MANIFEST, TokenStore, write_shard
from raytrain_nlp.errors import CheckpointError, InputError, StorageError
from raytrain_nlp.paths import RunPaths, SweepPaths, cache_dir, write_json
from raytrain_nlp.run.record import open_run
from raytrain_nlp.run.saved_run import find_run
from raytrain_nlp.run.sync import fetch_run
from raytrain_nlp.run.trial_records import Book
from raytrain_nlp.storage import open_storage, storage_of
from raytrain_nlp.storage.names import UnsafeName, below, part, what_is_wrong
from raytrain_nlp.tuning.inherit import Pointer, apply_pointer

BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "/etc/passwd",
    "//x",
    "a//b",
    "a/",
    "./a",
    "a\0b",
    "a\nb",
    "a\\b",
    "..\\x",
    "\\\\host\\x",
    "C:\\x",
    "x" * 256,
]
GOOD = ["a", "a/b", "a.b", "..a", "a..", "...", "a b", "~", "~root/x", "ä/😀", "$HOME", "*", "x" * 255]


@pytest.mark.parametrize("name", [*BAD, None, 7, ["a"], b"a", True], ids=lambda name: repr(name)[:20])
def test_bad_names_are_refused(tmp_path: Path, name: object) -> None:
    assert what_is_wrong(name)
    with pytest.raises(UnsafeName) as caught:
        below(tmp_path, name)
    assert (
        "\n" not in str(caught.value)
        and "\0" not in str(caught.value)
        and len(str(caught.value)) < len(str(tmp_path)) + 250
    )
    with pytest.raises(UnsafeName):
        part(name)


@pytest.mark.parametrize("name", GOOD, ids=lambda name: repr(name)[:20])
def test_good_names_are_paths_of_the_folder(tmp_path: Path, name: str) -> None:
    assert below(tmp_path, name) == tmp_path / name
    if "/" in name:
        with pytest.raises(UnsafeName):
            part(name)


def test_links_may_lead_about_in_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "rootless").mkdir()  # begins with the folder's name, and is another
    (root / "inside").symlink_to("sub")
    (root / "outside").symlink_to(tmp_path)
    (root / "beside").symlink_to(tmp_path / "rootless")
    (root / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to(root)
    assert below(root, "inside/x") == root / "inside" / "x"
    assert below(tmp_path / "alias", "sub/x") == tmp_path / "alias" / "sub" / "x"
    for name in ("outside/x", "outside", "beside/x"):
        with pytest.raises(UnsafeName, match="leads out of its folder"):
            below(root, name)


def bucket_with(monkeypatch: pytest.MonkeyPatch, *keys: str) -> FakeObjects:
    bucket = use_fake_bucket(monkeypatch)
    bucket.objects = {key: (b"evil", 0.0) for key in keys}
    return bucket


@pytest.mark.parametrize(
    "name",
    ["../escaped", "../../../../escaped", "a/../../escaped", "/tmp/escaped", "a//b", "a\\..\\b", "a\0b", "."],
    ids=repr,
)
def test_a_key_never_becomes_a_file_outside_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = open_storage("s3://bucket/runs", tmp_path).root / "run"
    bucket = bucket_with(monkeypatch, "runs/run/run.json", f"runs/run/{name}")
    storage = storage_of(folder)
    for look in (storage.fetch_tree, storage.list_tree, lambda path: fetch_run(RunPaths(path.parent, path.name))):
        with pytest.raises(StorageError, match="a name in it"):
            look(folder)
    assert not bucket.read and not [path for path in tmp_path.rglob("*") if path.is_file()]
    storage.delete_tree(folder, first="run.json")  # --overwrite: by their keys, which no path can stand for
    assert len(bucket.deleted) == 2 and not bucket.objects


def test_a_key_goes_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_storage("s3://bucket/runs", tmp_path).root / "run"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "logs").symlink_to(tmp_path / "elsewhere")
    bucket_with(monkeypatch, "runs/run/logs/x")
    with pytest.raises(StorageError, match="link"):
        storage_of(folder).fetch_tree(folder)
    assert not os.listdir(tmp_path / "elsewhere")


def test_the_lease_stays_when_a_run_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(open_storage("s3://bucket/runs", tmp_path).root, "run")
    bucket = bucket_with(monkeypatch, "runs/run/a", "runs/run/driver.json", "runs/run/run.json")
    with open_run(paths, overwrite=True):
        gone = [key for key in bucket.deleted if "/." not in key]  # none of the lease's own
        assert gone == ["runs/run/run.json", "runs/run/a"] and "runs/run/driver.json" in bucket.objects


@pytest.mark.parametrize("file", ["../outside.arrow", "ABSOLUTE", "linked/outside.arrow", None], ids=str)
def test_shards_lie_in_the_folder_of_their_manifest(tmp_path: Path, file: str | None) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path)
    write_shard(tmp_path / "outside.arrow", {"input_ids": [[1, 2]], "line": [0]})
    file = str(tmp_path / "outside.arrow") if file == "ABSOLUTE" else file
    (folder / MANIFEST).write_text(json.dumps({"rows": 1, "shards": [{"rows": 1, "file": file}]}))
    np.save(folder / LENGTHS, np.array([2], dtype=np.int32))
    with pytest.raises(UnsafeName):
        TokenStore(folder).fetch(np.array([0]))


JOB = {
    "task": {"type": "causal-lm"},
    "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
    "data": {"train": "x.txt"},
}


def run_with(storage: Path, tokenizer: object) -> RunPaths:
    paths = RunPaths(storage, "run")
    write_json(paths.record, {"status": "finished", "job": JOB, "tokenizer": tokenizer})
    return paths


def tokenizer_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("named", ["ABSOLUTE", "RELATIVE", "..", "", None, 7, "../../elsewhere/..", "a\0b"], ids=str)
def test_a_record_names_no_tokenizer_elsewhere(tmp_path: Path, named: object) -> None:
    elsewhere = tokenizer_in(tmp_path / "elsewhere" / "tokenizer")
    tokenizer_in(cache_dir(tmp_path, "tokenizers") / "other")
    told = {"ABSOLUTE": str(elsewhere), "RELATIVE": "../../elsewhere/tokenizer"}.get(str(named), named)
    paths = run_with(tmp_path, told)
    with pytest.raises(InputError, match="has no tokenizer yet"):
        find_run(paths.run)
    own = tokenizer_in(paths.model)
    assert find_run(paths.run).tokenizer == own


def test_the_tokenizer_of_a_storage_that_was_moved(tmp_path: Path) -> None:
    """The record says `/where/it/was/.cache/tokenizers/KEY`: the name counts, not the place."""
    wanted = tokenizer_in(cache_dir(tmp_path, "tokenizers") / "key")
    assert find_run(run_with(tmp_path, "/where/it/was/.cache/tokenizers/key").run).tokenizer == wanted


@pytest.mark.parametrize("best", ["../../elsewhere", None, [1], "0001"], ids=str)
def test_the_best_trial_is_a_number(tmp_path: Path, best: object) -> None:
    paths = SweepPaths(tmp_path, "sweep")
    write_json(paths.record, {"result": {"best_trial": best}})
    with pytest.raises(InputError, match="no best trial"):
        find_run(paths.run)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"number": "../../x", "params": {}}',
        '{"number": 2, "params": {}}',
        '{"number": null, "params": {}}',
        "{",
    ],
    ids=str,
)
def test_the_record_of_a_trial_is_that_of_its_folder(tmp_path: Path, content: str) -> None:
    paths = SweepPaths(tmp_path, "sweep")
    file = paths.trial(1).run / "trial.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(InputError):
        Book(paths)


@pytest.mark.parametrize("trial", ["../elsewhere", "..", "", "/tmp"], ids=repr)
def test_a_pointer_names_a_trial_of_its_sweep(tmp_path: Path, trial: str) -> None:
    receiver = RunPaths(tmp_path / "trials", "trial-0001")
    receiver.run.mkdir(parents=True)
    with pytest.raises((UnsafeName, CheckpointError)):
        apply_pointer(Pointer(trial, str(tmp_path / "elsewhere" / "donated" / "checkpoint-5"), 5, 1), receiver, print)
