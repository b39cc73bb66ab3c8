"""A storage path that one node has for itself is found by its worker, and told alike on all ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytrain_nlp.errors import InputError
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.run.record import open_run
from raytrain_nlp.worker import folder_check


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunPaths, RunPaths]:
    """The driver's folder, with the record of its second start, and that of a node which does not share it."""
    monkeypatch.setattr(folder_check, "_LAG_S", 0)
    mine, other = RunPaths(tmp_path / "a", "run"), RunPaths(tmp_path / "b", "run")
    for _ in range(2):
        with open_run(mine, overwrite=False) as record:
            record.update(drivers=record.values["drivers"] + 1)
    return mine, other


@pytest.mark.parametrize("stale", [False, True])
def test_a_node_with_a_folder_of_its_own_is_named(
    two_nodes: tuple[RunPaths, RunPaths], monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    mine, other = two_nodes
    if stale:  # a copy of an earlier time
        with open_run(other, overwrite=False) as record:
            record.update(drivers=1)
    spec: Any = SimpleNamespace(driver=2)
    assert folder_check.sees_record(spec, mine) and not folder_check.sees_record(spec, other)
    monkeypatch.setattr(folder_check, "gather_objects", lambda host: [None, host or "far-away"])  # both ranks get this
    for paths in two_nodes:
        with pytest.raises(
            InputError, match=r"storage_path: is not shared by all nodes: rank 1 on \S+ does not see the driver's"
        ):
            folder_check.check_shared(spec, paths)


def test_one_folder_for_all_passes(two_nodes: tuple[RunPaths, RunPaths]) -> None:
    folder_check.check_shared(SimpleNamespace(driver=2), two_nodes[0])
