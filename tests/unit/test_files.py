"""What a run leaves is readable as the user's umask says, is on disk, and is replaced as a whole, also by a process
that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import raytrain_nlp
from raytrain_nlp.checkpoint.state import save_state
from raytrain_nlp.data import builtin
from raytrain_nlp.paths import read_json, write_json
from raytrain_nlp.storage import atomic
from raytrain_nlp.storage.atomic import fsync_tree, recover_folder, replace_folder, replacing

ROOT = Path(raytrain_nlp.__file__).parent


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077], ids=oct)
def test_files_of_a_run_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    rows = {split: [{"text": "a"}] for split in builtin.SPLITS}
    monkeypatch.setitem(builtin.BUILTINS, "few", builtin.Builtin(lambda: rows, lambda: 1))
    with umask(mask):
        write_json(tmp_path / "run.json", {"a": 1})
        write_json(tmp_path / "run.json", {"a": 2})
        made = builtin.build_builtin("few", tmp_path / "cache", "data.train")
    for path in (tmp_path / "run.json", *made.values()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
def test_tensors_follow_the_umask(tmp_path: Path, mask: int) -> None:
    """In checkpoints, and in a model's folder: safetensors makes files for their owner alone."""
    with umask(mask):
        save_state(tmp_path / "x.state", {"a": torch.zeros(2)})
        (tmp_path / "staging").mkdir()
        save_file({"a": torch.zeros(2)}, str(tmp_path / "staging" / "model.safetensors"))
        replace_folder(tmp_path / "staging", tmp_path / "model")
    for path in (tmp_path / "x.state", tmp_path / "model" / "model.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_nothing_shared_is_made_with_tempfile() -> None:
    """Its files and folders are their owner's alone: right for a node's own, wrong in a run."""
    made = re.compile(r"\b(mkstemp|mkdtemp|NamedTemporaryFile)\b|TemporaryDirectory\([^)]*dir=")
    assert {
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if made.search(path.read_text(encoding="utf-8"))
    } <= {"host/scratch.py"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"good": True})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write("half")
        raise RuntimeError
    assert read_json(path) == {"good": True} and os.listdir(tmp_path) == ["run.json"]


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    """A path that is no UTF-8, and names as long as the file system takes."""
    value = {"path": os.fsdecode(b"data/\xff.jsonl"), "text": "ä 😀"}
    path = tmp_path / ("n" * 250)
    write_json(path, value)
    assert read_json(path) == value
    write_json(tmp_path / ("ä" * 120), value)
    assert read_json(tmp_path / ("ä" * 120)) == value


def folder(path: Path, content: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "config.json").write_text(content)
    (path / "sub" / "x").write_text(content)
    return path


def replace_and_die(place: Path, exchange: bool, moment: int) -> bool:
    """Replace in a process that ends before or after its nth change of the disk; did it come to its end?"""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    try:
        calls = iter(range(1, moment))

        def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if next(calls, None) is None:
                    os._exit(9)
                result = function(*arguments)
                if next(calls, None) is None:
                    os._exit(9)
                return result

            return call

        if not exchange:
            atomic._exchange = lambda one, other: False  # a file system that cannot
        for where, name in ((atomic, "_exchange"), (atomic, "remove"), (Path, "rename")):
            setattr(where, name, mortal(getattr(where, name)))
        replace_folder(place / ".model-12345678", place / "model")
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_moment_a_folder_is_the_old_one_or_the_new_one(tmp_path: Path, exchange: bool) -> None:
    seen, moment, ended = set(), 0, False
    while not ended:
        moment += 1
        place = tmp_path / str(moment)
        folder(place / "model", "old")
        folder(place / ".model-12345678", "new")
        ended = replace_and_die(place, exchange, moment)
        assert (place / "model").is_dir() or not exchange  # one name for the other in one step: nobody needs to recover
        recover_folder(place / "model")
        content = (place / "model" / "config.json").read_text()
        assert (place / "model" / "sub" / "x").read_text() == content and not list(place.glob(".model-old*"))
        seen.add(content)
        assert moment < 40
    assert seen == {"old", "new"} and content == "new" and os.listdir(place) == ["model"]


def test_a_new_folder_and_a_link_in_its_place(tmp_path: Path) -> None:
    replace_folder(folder(tmp_path / "a", "new"), tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    elsewhere = folder(tmp_path / "elsewhere", "kept")
    (tmp_path / "link").symlink_to(elsewhere)
    replace_folder(folder(tmp_path / "b", "new"), tmp_path / "link")
    assert (tmp_path / "link" / "config.json").read_text() == "new" and not (tmp_path / "link").is_symlink()
    assert (elsewhere / "config.json").read_text() == "kept"


def test_all_levels_of_a_folder_are_brought_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a" / "deep", "x")
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    fsync_tree(tmp_path / "a")
    assert {os.path.relpath(path, tmp_path) for path in synced} == {
        "a",
        "a/deep",
        "a/deep/sub",
        "a/deep/config.json",
        "a/deep/sub/x",
    }
    assert synced.index(str(tmp_path / "a" / "deep" / "sub")) < synced.index(str(tmp_path / "a"))


def test_damaged_json_is_one_line(tmp_path: Path) -> None:
    for number, content in enumerate(["{", "", "[" * 100_000, "\0", json.dumps({"a": 1})[:-1]]):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        with pytest.raises(raytrain_nlp.InputError, match="cannot be read"):
            read_json(path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(raytrain_nlp.InputError, match="cannot be read"):
        read_json(tmp_path / "binary.json")
    assert atomic.temporary_name(tmp_path / "x").parent == tmp_path
