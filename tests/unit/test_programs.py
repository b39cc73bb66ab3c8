"""Processes of this package do not take a user's file for a library."""

from __future__ import annotations

import subprocess
from pathlib import Path

from raytrain_nlp.cluster import local_ray
from raytrain_nlp.cpu import fork_server
from raytrain_nlp.host.processes import python_command
from raytrain_nlp.memory import available
from raytrain_nlp.verbs import doctor

NAMES = ("json", "random", "selectors", "torch", "ray", "datasets", "evaluate", "raytrain_nlp", "psutil")


def test_files_named_like_libraries_are_not_imported(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')\n")
    program = (
        "import json, psutil, random, selectors, raytrain_nlp.cluster.ray_head, raytrain_nlp.cpu.fork_server; "
        "print('loaded')"
    )
    ended = subprocess.run(python_command(program), cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("loaded\n", 0), ended.stderr


def test_every_process_is_started_so() -> None:
    for module in (doctor, fork_server, local_ray, available):
        source = Path(module.__file__).read_text()
        assert "python_command(" in source and '"-m"' not in source and '"-c"' not in source
