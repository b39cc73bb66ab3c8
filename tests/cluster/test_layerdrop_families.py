"""More models that skip layers, and one whose tokens choose their experts, under ZeRO-3 with two workers: nobody waits
for ever.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layerdrop import STEPS, layers, skipping_run
from support import losses


@pytest.mark.parametrize("name", ["bart", "nllb_moe"])
def test_all_ranks_skip_the_same_layers(
    train_warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run, (first, second) = skipping_run(train_warm, tmp_path, name, 2, 3)
    assert (
        layers(first) == layers(second) and 0.5 < len(layers(first)) / (STEPS * 6) < 0.9 and len(losses(run)) == STEPS
    )


def test_each_ranks_tokens_choose_their_own_experts(
    train_warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, ran = skipping_run(train_warm, tmp_path, "switch", 2, 3)
    first, second = ({(step, module) for step, module in of_rank if "expert" in module} for of_rank in ran)
    assert first != second and len(losses(run)) == STEPS
