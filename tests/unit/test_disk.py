"""Disks that are full, read-only or away: nothing committed is lost; what passes is waited for, else one line tells."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from test_checkpointer import Trained, checkpointer

from raytrain_nlp.checkpoint import commit, state, store
from raytrain_nlp.checkpoint.engine import SafeCheckpointEngine
from raytrain_nlp.cli import main
from raytrain_nlp.cpu import gradient_mean
from raytrain_nlp.errors import CheckpointError, DiskError
from raytrain_nlp.run import lease
from raytrain_nlp.storage import atomic, disk
from raytrain_nlp.storage.disk import code_of, patiently
from raytrain_nlp.verbs import doctor
from raytrain_nlp.verbs.train import _Tracking

FINAL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EMFILE]
PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


def name(code: int) -> str:
    return errno.errorcode[code]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for; nothing is really."""
    waited: list[float] = []
    monkeypatch.setattr(disk.time, "sleep", waited.append)
    return waited


class Failing:
    """Stands for a function that the disk refuses `times` times."""

    def __init__(self, code: int, times: int, real: Any):
        self.code, self.left, self.real = code, times, real

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)

    def __get__(self, instance: Any, owner: type) -> Any:
        return functools.partial(self, instance) if instance is not None else self  # as a method


WRITES = {
    "weights": (state, "save_file"),
    "their permissions": (state, "apply_umask"),
    "fsync": (os, "fsync"),
    "the manifest": (store, "write_json"),
    "the folder": (store, "fsync_tree"),
    "the rename": (Path, "rename"),
    "behind the rename": (store, "fsync_dir"),
    "the staging folder": (Path, "mkdir"),
}
"""Places at which a checkpoint is written."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def saved_once(root: Path) -> tuple[Any, Any, list[int]]:
    made, committed = checkpointer(root, limit=1)
    trained = Trained()
    trained.step()
    made.save(trained)
    trained.step()
    return made, trained, committed


@pytest.mark.parametrize("code", FINAL, ids=name)
@pytest.mark.parametrize("place", WRITES)
def test_a_disk_that_refuses_is_one_line_and_the_checkpoint_before_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], place: str, code: int
) -> None:
    made, trained, committed = saved_once(root)
    owner, function = WRITES[place]
    with monkeypatch.context() as patched:
        patched.setattr(owner, function, Failing(code, 1000, getattr(owner, function)))
        with pytest.raises(DiskError) as caught:
            made.save(trained)
    told = str(caught.value)
    assert "\n" not in told and str(root) in told and os.strerror(code) in told and "continue with --resume" in told
    assert ("free)" in told) == (code in (errno.ENOSPC, errno.EDQUOT)) and not pauses
    found = store.find_checkpoint(root)
    assert found and found.manifest.step in {1, 2} and (found.manifest.step == 1 or place == "behind the rename")
    assert committed == [1] and not list(root.glob(".staging-*"))  # what was half written takes no room
    made.save(trained)  # there is room again
    assert [found.manifest.step for found in store.list_checkpoints(root)] == [2]


@pytest.mark.parametrize("code", PASSING, ids=name)
@pytest.mark.parametrize("place", WRITES)
def test_a_server_that_is_away_for_a_moment_is_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], place: str, code: int
) -> None:
    made, trained, committed = saved_once(root)
    owner, function = WRITES[place]
    with monkeypatch.context() as patched:
        patched.setattr(owner, function, Failing(code, 2, getattr(owner, function)))
        made.save(trained)
    assert committed == [1, 2] and pauses == [0.5, 1.0]
    assert store.damage(store.list_checkpoints(root)[0]) is None


def test_a_server_that_stays_away_is_told_after_half_a_minute(pauses: list[float], tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"x cannot be written: Stale file handle\. Look at the disk or its server"):
        patiently(Failing(errno.ESTALE, 1000, None), tmp_path / "x")
    assert 25 < sum(pauses) < 40


def test_errors_of_a_disk_are_known_by_whatever_raises_them(tmp_path: Path) -> None:
    """safetensors is written in Rust, and has an error of its own."""
    assert code_of(SafetensorError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert code_of(ValueError("no disk")) is None
    with pytest.raises(ValueError, match="invalid literal"):
        patiently(lambda: int("no disk"), tmp_path)


def test_a_disk_without_inodes_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(tmp_path)
    values = {field: getattr(free, field) for field in ("f_bavail", "f_frsize")}
    monkeypatch.setattr(os, "statvfs", lambda path: type("Stat", (), {**values, "f_favail": 0, "f_files": 1000}))
    with pytest.raises(DiskError, match="room for no more files: no inodes are left"):
        patiently(Failing(errno.ENOSPC, 1, None), tmp_path / "x")


def test_ranks_of_deepspeed_are_not_left_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks meet after their files are written: a rank that raised before would be waited for by the others."""
    engine = SafeCheckpointEngine()
    monkeypatch.setattr(state, "save_file", Failing(errno.ENOSPC, 1, state.save_file))
    engine.save({"x": torch.zeros(2)}, str(tmp_path / "a"))
    engine.save({"x": torch.zeros(2)}, str(tmp_path / "b"))
    assert isinstance(engine.failed, DiskError) and engine.written == [str(tmp_path / "b")]


def test_the_failure_of_one_rank_is_that_of_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "gather_objects", lambda value: [value, "rank 1: the disk is full"])
    (root / ".staging-7-x").mkdir()
    with pytest.raises(DiskError, match="rank 1: the disk is full"), commit.written_by_all(root / ".staging-7-x"):
        pass
    assert not list(root.iterdir())


@contextlib.contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_file_larger_than_the_system_allows(root: Path) -> None:
    """A real refusal of the kernel, in the middle of a file."""
    made, trained, committed = saved_once(root)
    trained.model = torch.nn.Linear(400, 400)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with limited(resource.RLIMIT_FSIZE, 100_000), pytest.raises(DiskError, match="File too large.*ulimit -f"):
            made.save(trained)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert committed == [1] and (found := store.find_checkpoint(root)) and found.manifest.step == 1


def test_no_more_files_may_be_opened(root: Path) -> None:
    made, trained, committed = saved_once(root)
    with contextlib.ExitStack() as stack:
        highest = max(int(entry) for entry in os.listdir("/proc/self/fd")) + 1
        stack.enter_context(limited(resource.RLIMIT_NOFILE, highest))
        with contextlib.suppress(OSError):
            while True:
                stack.enter_context(open(os.devnull))
        with pytest.raises(DiskError, match=r"Too many open files.*ulimit -n"):
            made.save(trained)
    assert committed == [1]
    made.save(trained)
    assert committed == [1, 2]


_ON_TMPFS = """
import sys; sys.path[:0] = {paths!r}
import subprocess
from pathlib import Path
from test_disk import saved_once, store, DiskError
import torch
root = Path({mount!r}) / "checkpoints"
root.mkdir()
made, trained, committed = saved_once(root)
{change}
try:
    made.save(trained)
except DiskError as error:
    print(error)
print([found.manifest.step for found in store.list_checkpoints(root)], store.find_checkpoint(root) is not None)
"""


@pytest.mark.parametrize(
    ("options", "change", "told"),
    [
        ("size=256k", "trained.model = torch.nn.Linear(400, 400)", "No space left on device ("),
        ("size=4m,nr_inodes=12", "pass", "no inodes are left"),
        ("size=4m", "subprocess.check_call(['mount', '-o', 'remount,ro', str(root.parent)])", "Read-only file system"),
    ],
    ids=["full", "no inodes", "read-only"],
)
def test_real_file_systems_that_refuse(tmp_path: Path, options: str, change: str, told: str) -> None:
    """In a mount namespace of its own, which root may make; elsewhere the stand-ins above hold it."""
    mount, here = tmp_path / "mount", str(Path(__file__).parent)
    mount.mkdir()
    program = _ON_TMPFS.format(paths=[here, str(Path(here).parent)], change=change, mount=str(mount))
    command = 'mount -t tmpfs -o "$1" none "$2" || exit 99; exec "$3" -c "$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", options, str(mount), sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no file system may be mounted here")
    first, last = done.stdout.splitlines()[-2:]
    assert told in first and str(mount) in first and last == "[1] True", done.stderr


def test_what_is_written_over_stays_whole_where_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, tables, events of a tracker: all are written by `replacing`."""
    file = tmp_path / "run.json"
    file.write_text("old")
    for code in (errno.ENOSPC, errno.EROFS, errno.EIO):
        with monkeypatch.context() as patched:
            patched.setattr(atomic.os, "fsync", Failing(code, 1, os.fsync))
            with pytest.raises(OSError, match=os.strerror(code)), atomic.replacing(file) as new:
                new.write("new")
        assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENOENT], ids=name)
def test_a_disk_that_refuses_the_driver_anything_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def verb(**_: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "events.jsonl"))

    monkeypatch.setattr(main, "app", verb)
    with pytest.raises(SystemExit) as caught:
        main.main()
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and ("Traceback" in lines[0]) == (code == errno.ENOENT)
    if code != errno.ENOENT:
        assert (
            lines == [lines[0]] and f"error: {tmp_path}/events.jsonl cannot be written: {os.strerror(code)}" in lines[0]
        )


def test_what_has_ended_a_run_is_told_where_its_record_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = object.__new__(_Tracking)
    tracking._all, tracking._tracker = [], None
    tracking._record = SimpleNamespace(update=Failing(errno.EROFS, 9, None))
    with pytest.raises(DiskError, match="the checkpoint"), tracking:
        raise DiskError("the checkpoint cannot be written")
    with pytest.raises(OSError, match="Read-only"), tracking:
        pass  # of a run that has ended well its end is not to be lost


def test_a_clock_that_jumps_moves_no_deadline() -> None:
    """Wall-clock time is for people and for records. What is waited for is measured with the clock that does not
    jump: each use of the other is listed here with its reason.
    """
    import ast

    import raytrain_nlp

    place = Path(raytrain_nlp.__file__).parent
    found = {
        path.relative_to(place).as_posix()
        for path in place.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node) == "time.time" or node.attr in ("now", "utcnow", "today"))
        and not ast.unparse(node).startswith(("self.", "record."))
    }
    assert found == {
        "run/trial_records.py",  # when a trial began and ended, as it is shown
        "verbs/calibrate.py",  # compared with events, which have it
        "worker/node_load.py",  # between hosts, which share no other clock: an old figure is left out
        "worker/preemption.py",  # Ray gives the deadline so; it is only shown
    }


def test_a_lease_follows_the_clock_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's clock that is years off, or jumps while a lease is held, makes nobody dead or alive."""
    path = tmp_path / "driver.json"
    with lease.held(path):
        holder = lease._holder(path)
        assert holder
        for jump in (-1e9, 1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: 1.7e9 + jump)
            assert lease._age(path, holder) < lease._STALE_S
    assert issubclass(DiskError, CheckpointError)


def test_without_room_in_memory_gradients_go_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through sockets, decided before a byte is written (not by a SIGBUS); a small /dev/shm is told by `doctor`."""
    monkeypatch.setattr(gradient_mean.os, "posix_fallocate", Failing(errno.ENOSPC, 1, None))
    assert gradient_mean._create(1 << 20) == -1
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    finding = doctor._shared_memory()
    assert not finding.ok and "--shm-size" in finding.todo
