"""Thirty SIGKILLs in a row, drawn from a seed, of workers, whole nodes and drivers: the run ends as if there had been
none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from long_run import STEPS, assert_same_end, batches, begun, finish, job_of, whole_run
from under_fire import Victims, fire

KILLS, SAVE, SEED = 30, 5, 7


@pytest.mark.timeout(3000)
def test_thirty_kills(cluster: Any, folder: Path, tmp_path: Path) -> None:
    head, add = cluster
    job = job_of(folder, "under-fire", 2, max_failures=KILLS)
    job["checkpoint"] = {"save_steps": SAVE}
    victims = Victims(head, folder, add, job)
    killed = {kind for _, kind in fire(victims, KILLS, STEPS, SEED)}
    result = finish(victims.driver)
    assert result["global_step"] == STEPS and killed == {"worker", "node", "driver"}
    assert len(begun(victims.run)) == KILLS + 1
    seen = batches(tmp_path / "rows")
    for file in (tmp_path / "rows").iterdir():
        file.unlink()
    truth, wanted = whole_run(head, folder, tmp_path / "rows", "never-killed", 2)
    assert_same_end(victims.run, truth)
    assert seen == wanted
