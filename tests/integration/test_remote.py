"""What runs in object storage rest on: the lease, requests that fail, copies that go when nobody needs them."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest
from object_store import ObjectStore
from storage_steps import keeps_its_promises

from raytrain_nlp.checkpoint import store
from raytrain_nlp.checkpoint.commit import Commits, build_commits
from raytrain_nlp.errors import InputError, StorageError
from raytrain_nlp.run.lease import held
from raytrain_nlp.storage import objects as objects_of
from raytrain_nlp.storage import open_storage, shown, storage_of
from raytrain_nlp.storage.objects import Objects


@pytest.fixture
def place(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The local place of a folder in the bucket, on a node of its own."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return open_storage(f"s3://bucket/{tmp_path.name}", tmp_path).root


def test_a_place_tells_its_address(tmp_path: Path) -> None:
    place = open_storage("s3://bucket/a/b/", tmp_path).root
    assert shown(place / "c.json") == "s3://bucket/a/b/c.json"
    assert not storage_of(place).shared and storage_of(tmp_path).shared
    assert open_storage(str(tmp_path)).root == tmp_path
    assert shown(place) == "s3://bucket/a/b" and shown(tmp_path) == str(tmp_path)


def test_second_driver_on_another_host_is_refused(
    place: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = place / "driver.json"
    with held(lease):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with (
            pytest.raises(InputError, match=f"another driver is writing the run .* {shown(place)}"),
            held(lease),
        ):
            pass
    assert not object_store.objects("bucket", f"{place.name}/")
    with held(lease):
        assert f"{place.name}/driver.json" in object_store.objects("bucket", f"{place.name}/")


def test_writes_that_fail_are_tried_again_and_told_in_the_end(
    place: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    object_store.behave(failing=0.5)
    before = object_store.requests()["failed"]
    for number in range(8):
        storage_of(place).push(file, to=place / str(number))
    object_store.behave(failing=1.0)
    with pytest.raises(StorageError, match="s3://bucket cannot write"):
        storage_of(place).push(file, patience=1, to=place / "never")
    object_store.behave()
    assert object_store.requests()["failed"] > before
    assert set(object_store.objects("bucket", f"{place.name}/").values()) == {b"content"}


def test_a_large_file_travels_in_parts_that_fail(place: Path, object_store: ObjectStore, tmp_path: Path) -> None:
    """Five requests must go well, of which every second fails: a part that is lost does not cost the whole."""
    content = random.Random(0).randbytes(110 * 2**20)
    (tmp_path / "large").write_bytes(content)
    object_store.behave(failing=0.5)
    before = object_store.requests()
    storage_of(place).push(tmp_path / "large", to=place / "large")
    object_store.behave()
    made = {key: value - before[key] for key, value in object_store.requests().items()}
    assert made["failed"] and made["all"] - made["failed"] >= 5
    storage_of(place).fetch(place / "large")
    assert (place / "large").read_bytes() == content
    storage_of(place).delete([place / "large"])


def test_trees_travel_whole_and_only_what_is_missing(place: Path, object_store: ObjectStore, tmp_path: Path) -> None:
    for name in ("a", "b/c", "manifest.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    storage_of(place).push_tree(place, last="manifest.json")
    requests = object_store.requests()["all"]
    storage_of(place).push_tree(place, last="manifest.json")
    assert object_store.requests()["all"] == requests + 1  # it looks, and sends nothing
    other = open_storage(shown(place), tmp_path / "other").root
    storage_of(other).fetch_tree(other)
    assert {str(path.relative_to(other)): path.read_text() for path in other.rglob("*") if path.is_file()} == {
        name: name for name in ("a", "b/c", "manifest.json")
    }
    storage_of(place).delete_tree(place, first="manifest.json")
    assert (
        not storage_of(place).list_tree(place)
        and not storage_of(other).refetch(other / "a")
        and not (other / "a").exists()
    )


OF_ALL = ["latest", "scheduler.state", "trainer_state.json"]
OF_EACH = [
    "step/zero_pp_rank_{}_mp_rank_00_model_states.pt",
    "step/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt",
    "rng-{}.state",
]


def commits_of(place: Path, monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> Commits:
    """Of a rank that is alone on its node."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    return build_commits(place, rank, world_size, None, lambda step, seconds: None, lambda: None)


def copies(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} - {store.MANIFEST}


def test_a_node_copies_what_its_ranks_read(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parts and what is common; all where another number of ranks wrote it; a copy that differs is made again;
    what is damaged there is told.
    """
    staging = store.staging_dir(place, 5)
    paths = [staging / name for name in OF_ALL] + [
        staging / name.format(rank) for name in OF_EACH for rank in range(12)
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    store.commit(place, staging, store.Manifest(5, 12, 3, "data", {}, store.describe_files(staging, paths)))
    storage_of(place).push_tree(place)
    other = open_storage(shown(place), tmp_path / "other").root
    mine = {*OF_ALL, *(name.format(1) for name in OF_EACH)}
    found = commits_of(other, monkeypatch, 1, 12).find(pytest.fail)
    assert found.path == other / "checkpoint-5" and copies(found.path) == mine
    (found.path / "latest").write_text("LATEST")
    assert (
        commits_of(other, monkeypatch, 1, 12).damage(found) is None and (found.path / "latest").read_text() == "latest"
    )
    storage_of(found.path).write(found.path / "rng-1.state", "RNG-1")
    (found.path / "rng-1.state").unlink()
    assert commits_of(other, monkeypatch, 1, 12).damage(found) == "rng-1.state has 5 bytes instead of 11"
    assert commits_of(other, monkeypatch, 0, 12).damage(found) is None
    assert commits_of(other, monkeypatch, 0, 1).damage(found) is not None and len(copies(found.path)) == len(paths)


def test_who_leaves_last_removes_the_copies(place: Path) -> None:
    with storage_of(place).in_use():
        with storage_of(place).in_use():
            place.mkdir(parents=True)
            (place / "copy").touch()
        assert (place / "copy").exists()
    assert not place.exists()
    with pytest.raises(StorageError), storage_of(place).in_use():
        place.mkdir(parents=True)
        (place / "unsent").touch()
        raise StorageError("the storage is away")
    assert (place / "unsent").exists()  # it is nowhere else


def test_a_file_that_could_not_be_read_leaves_nothing(place: Path, object_store: ObjectStore) -> None:
    assert not storage_of(place).fetch(place / "nothing") and not place.exists() or not any(place.iterdir())


def test_an_object_is_made_once(place: Path, object_store: ObjectStore) -> None:
    """Also where the answer to the request that made it is lost, and the next try finds it there."""
    objects = Objects("s3://bucket")
    assert objects.has_conditions() and storage_of(place).has_conditions()
    assert objects.create(b"first", f"{place.name}/a") and not objects.create(b"second", f"{place.name}/a")
    object_store.behave(failing=0.5)
    for number in range(8):
        assert objects.create(b"mine", f"{place.name}/{number}") and not objects.create(
            b"another's", f"{place.name}/{number}"
        )
    object_store.behave()
    assert {*object_store.objects("bucket", f"{place.name}/").values()} == {b"first", b"mine"}
    assert not [key for key in object_store.objects("bucket") if key.startswith(".raytrain-nlp")]  # no probe is left


def test_a_server_that_ignores_conditions_is_found_out(
    place: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = objects_of._filesystem("s3", os.getpid(), 1)
    put = filesystem.pipe_file
    monkeypatch.setattr(filesystem, "pipe_file", lambda path, data, mode="overwrite": put(path, data))
    objects, key = Objects("s3://bucket"), f"{place.name}/made"
    assert not objects.has_conditions() and objects.create(b"x", key) and objects.create(b"y", key)
    assert objects.get_bytes(key) == b"y"


@pytest.mark.parametrize("name", ["../escaped", "logs/../../escaped", "a//b", "\\windows"], ids=repr)
def test_keys_of_others_are_never_paths_here(place: Path, object_store: ObjectStore, name: str) -> None:
    objects = Objects("s3://bucket")
    key = f"{place.name}/{name}"
    object_store.client().put_object(Bucket="bucket", Key=key, Body=b"evil")
    found = object_store.objects("bucket", f"{place.name}/")
    assert key in found, "the server has made another name of it"
    with pytest.raises(StorageError, match="a name in it"):
        storage_of(place).fetch_tree(place)
    assert not place.exists() and not (place.parent / "escaped").exists()
    storage_of(place).delete_tree(place)
    assert not object_store.objects("bucket", f"{place.name}/") and objects.find(place.name) == {}


def test_objects_that_stand_for_folders_and_odd_names(place: Path, object_store: ObjectStore) -> None:
    client = object_store.client()
    for name in (
        "",
        "sub/",
        "sub/deep/",
        "sub/a",
        "sub/*",
        "sub/a?",
        "sub/[a]",
        "sub/ä 😀",
        "sub/%41",
        "sub/a+b",
        "empty",
    ):
        client.put_object(
            Bucket="bucket",
            Key=f"{place.name}/{name}",
            Body=b"" if name.endswith("/") or name == "empty" else name.encode(),
        )
    storage_of(place).fetch_tree(place)
    assert {
        str(path.relative_to(place)): path.read_bytes().decode() for path in place.rglob("*") if path.is_file()
    } == {
        **{name: name for name in ("sub/a", "sub/*", "sub/a?", "sub/[a]", "sub/ä 😀", "sub/%41", "sub/a+b")},
        "empty": "",
    }
    storage_of(place).delete([place / "sub" / "*"])  # a name, not a pattern
    assert {*storage_of(place).list_tree(place)} == {
        "sub/a",
        "sub/a?",
        "sub/[a]",
        "sub/ä 😀",
        "sub/%41",
        "sub/a+b",
        "empty",
    }
    storage_of(place).delete_tree(place)
    assert storage_of(place).list_tree(place) == {}


def test_a_real_bucket_keeps_the_promises_of_a_storage(place: Path, tmp_path: Path) -> None:
    """The same steps as a folder and the fake bucket of the unit tests."""
    keeps_its_promises(storage_of(place), open_storage(shown(place), tmp_path / "other"))
