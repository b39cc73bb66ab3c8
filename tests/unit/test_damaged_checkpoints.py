"""Manifests that anybody may have written: each damaged one is named, and none is passed over without a word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.commit import Commits
from raytrain_nlp.checkpoint.consolidate import model_file
from raytrain_nlp.errors import CheckpointError, InputError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.record import _check_checkpoints
from raytrain_nlp.run.saved_run import Run, find_weights


def make(root: Path, step: int) -> store.Checkpoint:
    staging = store.staging_dir(root, step)
    (staging / "sub").mkdir(parents=True)
    paths = [staging / "sub" / "a", staging / "b"]
    for path in paths:
        path.write_bytes(os.urandom(100))
    return store.commit(
        root, staging, store.Manifest(step, 1, 0, "data", {"torch": "2"}, store.describe_files(staging, paths))
    )


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


def without(name: str) -> Callable[[str], str]:
    return lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != name})


def file_with(**values: Any) -> Callable[[str], str]:
    def change(text: str) -> str:
        manifest = json.loads(text)
        manifest["files"][0].update(values)
        return json.dumps(manifest)

    return change


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (lambda text: text[: len(text) // 2], "no JSON"),
    "empty": (lambda text: "", "empty"),
    "spaces": (lambda text: "  \n", "no JSON"),
    "a list": (lambda text: "[]", "a list, no object"),
    "null": (lambda text: "null", "null, no object"),
    "a number": (lambda text: "7", "a number, no object"),
    "a text": (lambda text: '"manifest"', "a text, no object"),
    "an empty object": (lambda text: "{}", "its format is None"),
    "deeply nested": (lambda text: "[" * 200_000, "nested too deep"),
    "zeros": (lambda text: "\0" * len(text), "no JSON"),
    "a later format": (
        changed(format=store.FORMAT + 1),
        f"its format is {store.FORMAT + 1}, this version reads {store.FORMAT}",
    ),
    "a format as text": (changed(format=str(store.FORMAT)), "its format is '1'"),
    "a format that is true": (changed(format=True), "its format is True"),
    "no format": (without("format"), "its format is None"),
    "step null": (changed(step=None), "step is no number"),
    "step as text": (changed(step="5"), "step is no number"),
    "step below zero": (changed(step=-5), "step is no number"),
    "step true": (changed(step=True), "step is no number"),
    "step a fraction": (changed(step=5.0), "step is no number"),
    "another step": (changed(step=4), "that of step 4"),
    "no ranks": (changed(world_size=0), "world_size is no number from 1 on"),
    "stage null": (changed(zero_stage=None), "zero_stage is no number"),
    "fingerprint null": (changed(data_fingerprint=None), "data_fingerprint is null, no text"),
    "versions a list": (changed(versions=["torch"]), "versions are no texts by name"),
    "files null": (changed(files=None), "files are null, no list"),
    "files an object": (changed(files={}), "files are an object, no list"),
    "a file as text": (changed(files=["b"]), "described by something else"),
    "no files": (without("files"), "it has no files"),
    "unknown": (changed(more=1), "it has what no manifest has: 'more'"),
    "size null": (file_with(size=None), "the size of .* is no number"),
    "hash null": (file_with(sha256=None), "the hash of .* is none"),
    "path null": (file_with(path=None), "is no text"),
    "path empty": (file_with(path=""), "is empty"),
    "path up": (file_with(path="../outside"), "leads out of its folder"),
    "path up in the middle": (file_with(path="sub/../../outside"), "leads out of its folder"),
    "path absolute": (file_with(path="/etc/passwd"), "is an absolute path"),
    "path with nul": (file_with(path="a\0b"), "has a character that no name here has"),
    "path with backslashes": (file_with(path="..\\outside"), "has a character that no name here has"),
    "path of dots": (file_with(path="./b"), "has a part that is no name"),
    "path too long": (file_with(path="x" * 256), "is longer than a name may be"),
    "path with two slashes": (file_with(path="sub//a"), "has a part that is no name"),
}


@pytest.fixture(params=DAMAGES, ids=str)
def damage(request: pytest.FixtureRequest) -> tuple[Callable[[Path], None], str]:
    """What damages a checkpoint's manifest, and how that is told."""
    change, told = DAMAGES[request.param]

    def apply(checkpoint: Path) -> None:
        file = checkpoint / store.MANIFEST
        file.write_text(change(file.read_text()))

    return apply, told


def test_alone_it_is_refused_by_the_driver_and_by_the_workers(tmp_path: Path, damage: Any) -> None:
    apply, told = damage
    paths = RunPaths(tmp_path, "run")
    apply(make(paths.checkpoints, 5).path)
    (problem,) = _check_checkpoints(paths)
    assert (
        problem.where == "--resume"
        and "none of 1 checkpoints is intact (the newest, checkpoint-5: manifest.json" in problem.what
    )
    notes: list[str] = []
    with pytest.raises(CheckpointError, match=told):
        Commits(paths.checkpoints, 0, 1, None, lambda step, seconds: None).find(notes.append)
    assert (
        len(notes) == 1
        and notes[0].startswith("checkpoint-5 is damaged (manifest.json ")
        and "\n" not in notes[0]
        and len(notes[0]) < 400
    )


@pytest.mark.parametrize("good", [4, 6], ids=["an older good one", "a newer good one"])
def test_beside_a_good_one_it_is_named(tmp_path: Path, damage: Any, good: int) -> None:
    apply, _ = damage
    paths = RunPaths(tmp_path, "run")
    apply(make(paths.checkpoints, 5).path)
    make(paths.checkpoints, good)
    notes: list[str] = []
    assert _check_checkpoints(paths) == []
    assert Commits(paths.checkpoints, 0, 1, None, lambda step, seconds: None).find(notes.append).manifest.step == good
    assert [note.split(" (")[0] for note in notes] == ["checkpoint-5 is damaged"]
    make(paths.checkpoints, 5)  # training comes past the step again: the damaged one makes room
    assert [found.manifest.step for found in store.list_checkpoints(paths.checkpoints)] == sorted((5, good))


def test_what_only_looks_like_a_checkpoint(tmp_path: Path) -> None:
    """A folder without a manifest is one that somebody damaged, as its name comes last; another name is nobody's
    checkpoint.
    """
    paths = RunPaths(tmp_path, "run")
    for name in ("checkpoint-best", "checkpoint-5.bak", "checkpoint-", "checkpoint-\u0665", "Checkpoint-7"):
        (paths.checkpoints / name).mkdir(parents=True)
    assert store.find_checkpoint(paths.checkpoints) is None
    (paths.checkpoints / "checkpoint-5").mkdir()
    with pytest.raises(CheckpointError, match="manifest.json is missing"):
        store.find_checkpoint(paths.checkpoints)
    (paths.checkpoints / "checkpoint-5").rmdir()
    (paths.checkpoints / "checkpoint-5").write_text("a file")
    with pytest.raises(CheckpointError, match="manifest.json cannot be read: Not a directory"):
        store.find_checkpoint(paths.checkpoints)
    make(paths.checkpoints, 5)
    os.rename(paths.checkpoints / "checkpoint-5", paths.checkpoints / "checkpoint-9")
    with pytest.raises(CheckpointError, match="checkpoint-9: manifest.json is that of step 5"):
        store.find_checkpoint(paths.checkpoints)


def outside_of(tmp_path: Path, name: str, checkpoint: store.Checkpoint) -> Path:
    """A file with the content of one of a checkpoint's, elsewhere."""
    path = tmp_path / "elsewhere" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((checkpoint.path / "sub" / "a").read_bytes())
    return path


@pytest.mark.parametrize("path", ["../../elsewhere/a", "ABSOLUTE", "sub/../../../elsewhere/a", "linked/a"], ids=str)
def test_no_file_outside_of_a_checkpoint_is_taken_for_one_of_it(tmp_path: Path, path: str) -> None:
    """Size and hash are right, the place is not; also where a manifest has come past `list_checkpoints`."""
    checkpoint = make(tmp_path / "checkpoints", 5)
    outside = outside_of(tmp_path, "a", checkpoint)
    (checkpoint.path / "linked").symlink_to(outside.parent)
    entry = next(entry for entry in checkpoint.manifest.files if entry.path == "sub/a")
    wrong = store.FileEntry(str(outside) if path == "ABSOLUTE" else path, entry.size, entry.sha256)
    values = {**asdict(checkpoint.manifest), "files": [wrong]}
    assert store.damage(store.Checkpoint(checkpoint.path, store.Manifest(**values))) is not None
    assert store.damage(checkpoint) is None


@pytest.mark.parametrize(
    "tag", ["../elsewhere", "/tmp", "", "a/b", "..", "a\0", "x" * 5_000], ids=lambda tag: repr(tag)[:20]
)
def test_latest_names_a_folder_of_the_checkpoint(tmp_path: Path, tag: str) -> None:
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="names no folder of the checkpoint"):
        model_file(tmp_path)


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make(tmp_path, 5)

    def failing(self: Path, *arguments: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    assert store.damage(checkpoint) == "sub/a cannot be read: Input/output error"


def test_checkpoints_that_go_while_weights_are_looked_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on retires them: what has been seen and is gone is missing, not a traceback."""
    paths = RunPaths(tmp_path, "run")
    make(paths.checkpoints, 5)
    seen = store.scan(paths.checkpoints)

    def scan(root: Path) -> Any:
        shutil.rmtree(root, ignore_errors=True)
        return seen if not calls.append(1) and len(calls) == 1 else ([], [])

    calls: list[int] = []
    monkeypatch.setattr(store, "scan", scan)
    with pytest.raises(InputError, match="checkpoint-5: .*is missing"):
        find_weights(Run(paths, None, [], paths.run, {}, tmp_path, None), "last")
