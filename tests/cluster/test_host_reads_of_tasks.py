"""How often a step waits for a value of its device, for every task and way to train, under ZeRO 0, 2 and 3: never more
than with plain `Trainer`. The fast part: tests/integration/test_host_reads.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from step_sides import TASKS, WAYS, reads_of_both


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("name", [*TASKS, *WAYS])
def test_a_step_reads_no_more_than_plain_trainers(tmp_path: Path, name: str, stage: int) -> None:
    ours, plain = reads_of_both(tmp_path, (TASKS | WAYS)[name], stage)
    print(f"{name}, ZeRO {stage}: {len(ours)} and {len(plain)}")
    assert len(ours) <= len(plain), f"ours: {Counter(ours)}, plain: {Counter(plain)}"
    assert stage or not ours or name in ("summarization", "translation")
    assert not [read for read in ours if "raytrain_nlp" in read]
