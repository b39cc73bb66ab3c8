"""`doctor` where it asks other processes: torch whether there are GPUs, Ray whether a cluster answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytrain_nlp.verbs import doctor


def test_this_machine_can_run_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {finding.name: finding for finding in doctor.doctor(str(tmp_path / "runs"))}
    assert list(found) == [
        "python",
        "packages",
        "accelerator",
        "compiler",
        "memory",
        "shared memory",
        "open files",
        "secrets",
        "ray",
        "storage",
        "tracker",
    ]
    assert all(found[name].ok for name in ("python", "packages", "accelerator", "ray", "storage", "tracker")), found
    assert not list(tmp_path.iterdir()), "the probe is still there"


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 3)
    finding = doctor._ray()
    assert not finding.ok and "127.0.0.1:9 cannot be reached" in finding.what and "RAY_ADDRESS" in finding.todo
