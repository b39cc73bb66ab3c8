"""Of objects, a state file takes only what DeepSpeed keeps in the state of fp16 training, and gives it back as it
was.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from raytrain_nlp.checkpoint.state import load_state, save_state
from raytrain_nlp.errors import CheckpointError


def test_a_loss_scaler_comes_back(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(2.0**10, 2.0, 7, 1.0, 1, False)
    save_state(tmp_path / "x", {"loss_scaler": scaler})
    assert vars(load_state(tmp_path / "x")["loss_scaler"]) == vars(scaler)


def test_other_objects_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be stored without pickle"):
        save_state(tmp_path / "x", {"bad": object()})
