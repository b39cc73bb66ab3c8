"""One interface over a folder and a bucket: which of them an address means, what both promise, and that nobody outside
asks a path.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from fake_bucket import use_fake_bucket
from storage_steps import keeps_its_promises

import raytrain_nlp
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.storage import open_storage, problem_of_address, shown, storage_of
from raytrain_nlp.storage.base import everything
from raytrain_nlp.storage.bucket import Bucket
from raytrain_nlp.storage.folder import Folder

PACKAGE = Path(raytrain_nlp.__file__).parent


def test_a_folder_keeps_the_promises_of_a_storage(tmp_path: Path) -> None:
    keeps_its_promises(open_storage(tmp_path / "runs"), storage_of(tmp_path / "runs"))
    assert not [path for path in (tmp_path / "runs").rglob(".*")], "nothing half made or half deleted is left"


def test_a_bucket_keeps_the_promises_of_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    use_fake_bucket(monkeypatch)
    address = "s3://bucket/some/runs"
    keeps_its_promises(open_storage(address, tmp_path / "one"), open_storage(address, tmp_path / "other"))


def test_an_address_says_what_it_means_and_a_path_on_a_node_knows_it(tmp_path: Path) -> None:
    bucket, folder = open_storage("s3://bucket/a/b/", tmp_path), open_storage(tmp_path)
    assert bucket.address_of(bucket.root / "c.json") == shown(bucket.root / "c.json") == "s3://bucket/a/b/c.json"
    assert folder.address_of(tmp_path / "c") == shown(tmp_path / "c") == str(tmp_path / "c")
    assert storage_of(bucket.root / "run").address_of(bucket.root) == "s3://bucket/a/b"
    for storage in (bucket, folder):
        assert pickle.loads(pickle.dumps(storage)) == storage and everything("x")
        assert RunPaths(storage, "run").store == storage and RunPaths(storage.root, "run").address.endswith("/run")
    assert isinstance(bucket, Bucket) and isinstance(folder, Folder)
    assert (bucket.shared, folder.shared) == (False, True) and folder.poll_s < bucket.poll_s
    assert RunPaths(bucket, "run").database_folder == bucket.root / "run"
    assert RunPaths(folder, "run").database_folder == tmp_path


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("runs", None),
        ("s3://bucket/runs", None),
        ("gs://bucket", None),
        ("s3://", "names no bucket"),
        ("s3:///runs", "names no bucket"),
        ("hdfs://x/y", "must be a folder"),
        ("~nobody-here/runs", "names a user"),
        ("a\0b", "NUL"),
        ("a/" + "x" * 256, "more than 255"),
    ],
)
def test_what_is_wrong_with_an_address(address: str, wrong: str | None) -> None:
    found = problem_of_address(address)
    assert found is None if wrong is None else wrong in str(found) and " || " in str(found)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    problems = open_storage(tmp_path / "file" / "runs").check()
    assert [problem.where for problem in problems] == ["storage_path"] and "cannot be written" in str(problems[0])


def test_a_bucket_knows_its_copies_below_a_link(tmp_path: Path) -> None:
    """A TMPDIR that is a link: paths are resolved here and there, and name the same object."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = open_storage("s3://bucket/runs", tmp_path / "link")
    assert storage.address_of((storage.root / "run").resolve()) == "s3://bucket/runs/run"


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --overwrite: a run that starts anew among checkpoints of another would go on from them."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "driver.lock").touch()

    def refuses(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("raytrain_nlp.storage.folder.shutil.rmtree", refuses)
    with pytest.raises(PermissionError):
        storage_of(tmp_path).delete_tree(tmp_path / "run", keep=["driver.lock"])


def test_nobody_outside_looks_at_the_text_of_a_path_to_see_where_it_lies() -> None:
    """Neither by the schemes nor by the place of copies: the object knows."""
    asks = re.compile(r"SCHEMES|s3://\"|gs://\"|startswith\(.s3:|Bucket\.|isinstance\([^)]*(?:Folder|Bucket)\)")
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "storage" and asks.search(path.read_text(encoding="utf-8"))
    }
    assert not found
