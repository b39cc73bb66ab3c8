"""Two drivers on one run: the second refuses; a dead one is followed at once on its own host, after its time from another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain_nlp.driver import lease
from raytrain_nlp.driver.record import open_run
from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths, read_json

HOLD = "import sys, time\nfrom raytrain_nlp.driver.record import open_run\nfrom raytrain_nlp.paths import RunPaths\n"
HOLD += "with open_run(RunPaths(sys.argv[1], 'run'), False):\n    print('held', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def killed(tmp_path: Path) -> RunPaths:
    """The folder of a run whose driver was killed, as it left it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    paths = RunPaths(tmp_path, "run")
    with pytest.raises(InputError, match="another driver is writing the run"), open_run(paths, overwrite=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
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
    program = "from raytrain_nlp.driver import lease\nlease._BEAT_S = 0.05\n" + HOLD
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    next_one = '{"host": "elsewhere", "pid": 7, "id": "x"}'
    process.send_signal(signal.SIGSTOP)
    path = RunPaths(tmp_path, "run").lease
    path.write_text(next_one)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert "taken over by process 7 on elsewhere" in told and path.read_text() == next_one
