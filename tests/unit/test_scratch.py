"""Scratch: gone after use, of the living left alone, of the killed removed by the next."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raytrain_nlp.host.scratch import scratch_folder

_OTHER = (
    "import sys; from raytrain_nlp.host.scratch import scratch_folder\nwith scratch_folder() as folder: print(folder, "
    "flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_is_gone_after_use(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").write_text("x")
    assert not folder.exists() and folder.is_relative_to(tmp_path)


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        folder = Path(other.stdout.readline().strip())
        (folder / "file").write_text("x")
        with scratch_folder() as mine, scratch_folder() as second:
            assert len({mine, second, folder}) == 3 and (folder / "file").exists()
        other.kill()
        other.wait()
        assert folder.exists()
        with scratch_folder():
            assert not folder.exists()
