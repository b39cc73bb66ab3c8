"""Processes of this package do not take a user's file for a library."""

from __future__ import annotations

import subprocess
from pathlib import Path

from raytrain_nlp.driver import doctor, forkserver, local_ray, sizes
from raytrain_nlp.programs import python_command

NAMES = ("json", "random", "selectors", "torch", "ray", "datasets", "evaluate", "raytrain_nlp", "psutil")


def test_files_named_like_libraries_are_not_imported(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    program = "import json, psutil, random, selectors, raytrain_nlp.driver.ray_head, raytrain_nlp.driver.forkserver; print('loaded')"
    ended = subprocess.run(python_command(program), cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("loaded\n", 0), ended.stderr


def test_every_process_is_started_so() -> None:
    for module in (doctor, forkserver, local_ray, sizes):
        source = Path(module.__file__).read_text()
        assert "python_command(" in source and '"-m"' not in source and '"-c"' not in source
