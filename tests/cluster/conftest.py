"""A cluster without room on its head, whose nodes the test adds, and the data of the run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from head import Head, Node, started_head, started_nodes
from long_run import PATIENCE_S, ROWS, SLOW
from support import hook_environment, write_rows


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Three runs and the start of a cluster may take half an hour on a busy machine."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3 * PATIENCE_S))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    write_rows(folder / "train.jsonl", ROWS)
    (folder / "slow_callback.py").write_text(SLOW)
    return folder


@pytest.fixture
def cluster(folder: Path, tmp_path: Path) -> Iterator[tuple[Head, Callable[[str], Node]]]:
    (tmp_path / "rows").mkdir()
    hooks = hook_environment(tmp_path / "hooks.json", record_rows=str(tmp_path / "rows"))
    hooks = {key: hooks[key] for key in ("PYTHONPATH", "RAYTRAIN_NLP_TEST_HOOKS")}
    with (
        started_head("--num-cpus=0", "--object-store-memory=150000000", dashboard=False) as head,
        started_nodes(head, hooks) as start,
    ):
        yield head, start
