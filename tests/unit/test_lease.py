"""Two drivers on one run: the second refuses; a dead one is followed at once on its own host, after its time from
another.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_bucket import FakeObjects, use_fake_bucket

from raytrain_nlp.config import load_job
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths, read_json, write_json
from raytrain_nlp.run import lease
from raytrain_nlp.run.record import check_name, open_run
from raytrain_nlp.storage import open_storage, storage_of

HOLD = "import sys, time\nfrom raytrain_nlp.run.record import open_run\nfrom raytrain_nlp.paths import RunPaths\n"
HOLD += "with open_run(RunPaths(sys.argv[1], 'run'), False):\n    print('held', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def killed(tmp_path: Path) -> RunPaths:
    """The folder of a run whose driver was killed, as it left it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    paths = RunPaths(tmp_path, "run")
    with pytest.raises(InputError, match="another driver is writing the run"), open_run(paths, overwrite=False):
        pass
    with process:
        process.send_signal(signal.SIGKILL)
    assert read_json(paths.lease)["pid"] == process.pid
    return paths


def test_on_its_own_host_a_dead_driver_is_followed_at_once(killed: RunPaths) -> None:
    with open_run(killed, overwrite=True):
        assert read_json(killed.lease)["pid"] == os.getpid()
    assert not killed.lease.exists()


def test_from_another_host_after_its_time(killed: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = read_json(killed.lease)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    line = rf"another driver is writing the run \(process {dead['pid']} on {dead['host']}, last heard of"
    with pytest.raises(InputError, match=line), open_run(killed, overwrite=False):
        pass
    assert read_json(killed.lease) == dead
    past = killed.lease.stat().st_mtime - lease._STALE_S - 1
    os.utime(killed.lease, (past, past))
    with open_run(killed, overwrite=False):
        assert read_json(killed.lease)["host"] == "elsewhere"
    assert not [path for path in killed.run.iterdir() if path.name.startswith(".")]  # no probe is left


def test_who_lost_the_lease_stops_writing(tmp_path: Path) -> None:
    """A driver that slept through its time, and wakes up beside the next."""
    program = "from raytrain_nlp.run import lease\nlease._BEAT_S = 0.05\n" + HOLD
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    next_one = '{"host": "elsewhere", "pid": 7, "id": "x"}'
    process.send_signal(signal.SIGSTOP)
    path = RunPaths(tmp_path, "run").lease
    path.write_text(next_one)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "taken over by process 7 on elsewhere" in told and path.read_text() == next_one


class Place:
    """Where a lease lies, and how a test changes it: a folder, or a bucket of which each host has copies of its own."""

    def __init__(self, tmp_path: Path, bucket: FakeObjects | None):
        self._tmp_path, self.bucket = tmp_path, bucket

    def of(self, host: str) -> Path:
        root = (
            self._tmp_path / "shared"
            if self.bucket is None
            else open_storage("s3://bucket/runs", self._tmp_path / host).root
        )
        return root / "run" / "driver.json"

    def write(self, content: str, age_s: float) -> None:
        if self.bucket:
            self.bucket.objects["runs/run/driver.json"] = content.encode(), time.time() - age_s
        else:
            self.of("").parent.mkdir(parents=True, exist_ok=True)
            self.of("").write_text(content)
            os.utime(self.of(""), (time.time() - age_s,) * 2)

    def left(self) -> list[str]:
        return sorted(self.bucket.objects) if self.bucket else sorted(os.listdir(self.of("").parent))


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """On each thread another host, by the thread's name."""
    monkeypatch.setattr("socket.gethostname", lambda: threading.current_thread().name)
    if request.param == "folder":
        return Place(tmp_path, None)
    bucket = use_fake_bucket(monkeypatch, FakeObjects(pause_s=0.002))
    return Place(tmp_path, bucket)


def race(place: Place, hosts: int = 6) -> tuple[list[str], list[str]]:
    """Drivers of many hosts start at once: which enter, and what the others are told. Who enters stays until all have
    tried.
    """
    entered: list[str] = []
    told: list[str] = []
    begin, end = threading.Barrier(hosts), threading.Barrier(hosts)

    def drive() -> None:
        name = threading.current_thread().name
        begin.wait(30)
        try:
            with lease.held(place.of(name)):
                entered.append(name)
                end.wait(30)
        except InputError as error:
            told.append(str(error))
            end.wait(30)

    threads = [threading.Thread(target=drive, name=f"host-{number}") for number in range(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return entered, told


DEAD = json.dumps({"host": "dead", "boot": "x", "pid": 7, "id": "x"})


@pytest.mark.parametrize(
    "before",
    [None, DEAD, "{}", "", "[]", '{"host": 3, "id": {"../x": null}}'],
    ids=["free", "dead", "an object", "empty", "a list", "odd"],
)
def test_of_many_hosts_at_once_one_enters(place: Place, before: str | None) -> None:
    for _ in range(6):
        if before is not None:
            place.write(before, lease._STALE_S + 5)
        entered, told = race(place)
        assert len(entered) == 1 and len(told) == 5
        assert all(
            "start the run at the same time" in line or "another driver is writing the run" in line for line in told
        )
        assert place.left() == []  # neither a lease nor a probe, nor the right to follow anybody


@pytest.mark.parametrize("content", [DEAD, "", "null"], ids=["a holder", "an empty file", "null"])
def test_a_fresh_lease_is_respected_whatever_is_in_it(place: Place, content: str) -> None:
    place.write(content, 5)
    with pytest.raises(InputError, match="another driver is writing the run"), lease.held(place.of("here")):
        pass
    assert place.left() == ["driver.json"] or place.left() == ["runs/run/driver.json"]


def test_a_clock_that_was_set_back_keeps_nobody_out(place: Place) -> None:
    place.write(DEAD, -3_600)
    with lease.held(place.of("here")):
        pass


def test_who_died_while_following_is_followed(place: Place) -> None:
    """The right to follow is a lease itself: its dead holder is followed after its time, and not before."""
    place.write(DEAD, lease._STALE_S + 5)
    path = place.of("here")
    right = path.with_name(f".driver.json.after-{lease._name_of(json.loads(DEAD))}")
    follower = json.dumps({"host": "also dead", "boot": "x", "pid": 8, "id": "y"})
    storage_of(right).create(right, follower)
    with pytest.raises(InputError, match="process 8 on also dead"), lease.held(path):
        pass
    if place.bucket:
        place.bucket.objects[f"runs/run/{right.name}"] = follower.encode(), time.time() - lease._STALE_S - 5
    else:
        os.utime(right, (time.time() - lease._STALE_S - 5,) * 2)
    for _ in range(4):
        entered, _ = race(place)
        assert len(entered) == 1 and place.left() == []
        place.write(DEAD, lease._STALE_S + 5)


def test_a_holder_that_lives_is_heard_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.02)
    path = place.of("here")
    with lease.held(path):
        started = lease._holder(path)
        place.write(json.dumps(started), lease._STALE_S + 5)  # as if it had begun long ago
        end = time.monotonic() + 20
        while lease._age(path, started) > 10:
            assert time.monotonic() < end
            time.sleep(0.02)
        entered, told = race(place, hosts=2)
        assert not entered and len(told) == 2


def test_a_beat_that_fails_ends_neither_the_thread_nor_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.01)
    holder, calls = lease._holder, []

    def failing(path: Path) -> Any:
        calls.append(path)
        if threading.current_thread().name == "lease" and len(calls) % 2:
            raise RuntimeError(f"told to fail in {place.of('')}")
        return holder(path)

    monkeypatch.setattr(lease, "_holder", failing)
    with lease.held(place.of("here")):
        end = time.monotonic() + 20
        while len(calls) < 12:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert capsys.readouterr().err.count("the lease of the run cannot be kept alive") == 1


def test_a_storage_without_conditions_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = FakeObjects(conditions=False)
    use_fake_bucket(monkeypatch, bucket)
    path = Place(tmp_path, bucket).of("here")
    for _ in range(2):
        with lease.held(path):
            monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
            bucket.create(b"{}", "runs/run/driver.json")
            assert lease._holder(path) == {}  # at its next beat the first finds this, and ends
            bucket.delete(["runs/run/driver.json"])
    assert capsys.readouterr().err.count("makes no conditional writes") == 1


def test_a_start_that_was_killed_early_does_not_block_the_name(tmp_path: Path) -> None:
    """Killed between lease and record, a folder has nothing else: it is no other's folder."""
    paths = RunPaths(tmp_path, "run")
    write_json(paths.lease, json.loads(DEAD))
    paths.lock.touch()
    (paths.run / ".driver.json.after-0123456789abcdef").touch()
    job = load_job(
        {
            "name": "run",
            "storage_path": str(tmp_path),
            "task": {"type": "causal-lm"},
            "model": {"name_or_path": "x"},
            "data": {"train": "x.txt"},
        }
    )
    assert check_name(job, paths, resume=False, overwrite=False) == []
    (paths.run / "notes.txt").touch()
    assert "is not that of a run" in check_name(job, paths, resume=False, overwrite=False)[0].what
