"""A model that draws which layers run, under ZeRO-3 with two workers: nobody waits for ever, and a layer that is
skipped stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layerdrop import STEPS, layers, skipping_run
from safetensors.torch import load_file


def test_all_ranks_skip_the_same_layers_whatever_their_number(
    train_warm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ZeRO, in one process, a layer that is skipped has no gradient, and plain SGD leaves it alone."""
    monkeypatch.chdir(tmp_path)
    two, (first, second) = skipping_run(train_warm, tmp_path, "m2m_100", 2, 3)
    one, (truth,) = skipping_run(train_warm, tmp_path, "m2m_100", 1, 0)
    assert first == second == truth and 0.5 < len(layers(first)) / (STEPS * 6) < 0.9
    here, there = load_file(two / "model" / "model.safetensors"), load_file(one / "model" / "model.safetensors")
    assert here.keys() == there.keys() and max(float((here[key] - there[key]).abs().max()) for key in here) < 1e-5
