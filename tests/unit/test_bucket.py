"""Object storage through a bucket in memory: what is kept, what is tried again, what is refused, and what an answer
means.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from fsspec.implementations.memory import MemoryFileSystem

from raytrain_nlp.errors import StorageError
from raytrain_nlp.storage import objects as bucket
from raytrain_nlp.storage.objects import Objects
from raytrain_nlp.storage.responses import is_final, is_there, knows_no_conditions


def answer(code: str) -> ClientError:
    """What botocore makes of a server's refusal."""
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")


class Server(MemoryFileSystem):
    """A bucket, with paths as s3fs writes them: no slash before its name. `trouble` is asked before each request."""

    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    trouble: list[Exception] = []
    requests = 0

    def _asked(self) -> None:
        Server.requests += 1
        if Server.trouble:
            raise Server.trouble.pop(0)

    def find(self, path: str, **kwargs: Any) -> Any:
        self._asked()
        return {name.lstrip("/"): info for name, info in super().find(path, **kwargs).items()}

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> Any:
        self._asked()
        return super().pipe_file(path, value, **kwargs)

    def cat_file(self, path: str, **kwargs: Any) -> Any:
        self._asked()
        return super().cat_file(path, **kwargs)


class Time(SimpleNamespace):
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__(now=0.0, pauses=[])

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(bucket, "time", clock)
    return clock


@pytest.fixture
def objects() -> Iterator[Objects]:
    scheme = f"held{uuid.uuid4().hex[:8]}"
    fsspec.register_implementation(scheme, Server)
    Server.store, Server.pseudo_dirs, Server.trouble, Server.requests = {}, [""], [], 0
    yield Objects(f"{scheme}://bucket")


def test_what_goes_up_comes_down_and_is_listed_with_its_size(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    objects.put(tmp_path / "a", "runs/x/a")
    objects.put_bytes(b"12", "runs/x/b")
    objects.put_bytes(b"other", "runs/y")
    assert objects.find("runs/x") == {"runs/x/a": 7, "runs/x/b": 2}
    assert objects.find() == {"runs/x/a": 7, "runs/x/b": 2, "runs/y": 5}
    objects.get("runs/x/a", tmp_path / "new" / "folder" / "a")
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"weights" and objects.get_bytes("runs/x/b") == b"12"
    with pytest.raises(FileNotFoundError):
        objects.get("runs/x/none", tmp_path / "none")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a"]


def test_deleting_a_name_with_signs_of_patterns_leaves_what_they_would_match(objects: Objects) -> None:
    for key in ("d/a*", "d/ab", "d/a[b]", "d/a?"):
        objects.put_bytes(b"x", key)
    objects.delete(["d/a*", "d/a[b]", "d/gone"])
    assert set(objects.find("d")) == {"d/ab", "d/a?"}
    objects.delete(["d/ab", "d/gone"])
    objects.delete([])
    assert "d/a?" in objects.find("d")


def test_of_two_that_create_an_object_one_does_and_no_probe_stays(objects: Objects) -> None:
    assert objects.create(b"first", "lease")
    assert not objects.create(b"second", "lease")
    assert objects.get_bytes("lease") == b"first" and set(objects.find()) == {"lease"}


def test_the_one_whose_answer_was_lost_has_still_created_it(
    objects: Objects, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would wait for a lease that it holds itself."""
    real, lost = Server.pipe_file, [True]

    def made_and_lost(self: Server, path: str, value: bytes, **kwargs: Any) -> Any:
        done = real(self, path, value, **kwargs)
        if path.endswith("lease") and lost and lost.pop():
            raise ConnectionError("reset")
        return done

    monkeypatch.setattr(Server, "pipe_file", made_and_lost)
    assert objects.create(b"mine", "lease")


def test_a_passing_failure_is_tried_again_with_growing_pauses(objects: Objects, clock: Time) -> None:
    objects.put_bytes(b"x", "a")
    Server.trouble = [OSError("slow down") for _ in range(7)]
    assert objects.get_bytes("a") == b"x"
    assert len(clock.pauses) == 7 and max(clock.pauses) <= 15
    for place, pause in enumerate(clock.pauses):  # half a second doubled each time, at most halved by chance
        assert min(0.5 * 2**place, 15) / 2 <= pause <= 0.5 * 2**place


def test_one_that_lasts_is_told_in_a_line_when_patience_ends(objects: Objects, clock: Time) -> None:
    Server.trouble = [OSError("slow down\nand more") for _ in range(1_000)]
    with pytest.raises(StorageError, match=r"bucket cannot read a/b: OSError: slow down$"):
        objects.get_bytes("a/b", patience=60)
    assert 30 < clock.now <= 60


@pytest.mark.parametrize(
    "error",
    [PermissionError("denied"), NoCredentialsError(), TypeError("no such argument")],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_told_at_once(objects: Objects, clock: Time, error: Exception) -> None:
    Server.trouble = [error, error]
    with pytest.raises(StorageError, match=f"cannot write a: {type(error).__name__}"):
        objects.put_bytes(b"x", "a")
    assert Server.requests == 1 and not clock.pauses


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("meaning", "error", "expected"),
    [
        (is_there, FileExistsError("x"), True),
        (is_there, answer("PreconditionFailed"), True),
        (is_there, answer("412"), True),
        (is_there, caused(OSError("x"), answer("PreconditionFailed")), True),
        (is_there, answer("SlowDown"), False),
        (is_there, None, False),
        (is_final, answer("SlowDown"), False),
        (is_final, ConnectionError("reset"), False),
        (is_final, answer("PreconditionFailed"), True),
        (is_final, FileNotFoundError("x"), True),
        (is_final, NoCredentialsError(), True),
        (knows_no_conditions, answer("NotImplemented"), True),
        (knows_no_conditions, TypeError("unexpected keyword 'IfNoneMatch'"), True),
        (knows_no_conditions, answer("AccessDenied"), False),
    ],
)
def test_what_an_answer_means(meaning: Callable[[Any], bool], error: Any, expected: bool) -> None:
    """A refused condition taken for a failure would have two drivers write one run, or none start at all."""
    assert meaning(error) is expected
