"""Preference tuning beside TRL's own trainer on the same global batches, with two workers and ZeRO-3; evaluations and
predictions of the run. The other losses, adapters and kills: tests/cluster/test_preference_runs.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_truth import HELD_OUT, compare_with_trl


def test_dpo(shared_ray: Any, tmp_path: Path) -> None:
    """The reference's log-probabilities are computed before training; `evaluate` computes them anew."""
    import raytrain_nlp

    result = compare_with_trl(tmp_path, "sigmoid", 3)
    assert [path.name.partition("-")[0] for path in sorted((Path(result.run_dir) / "reference").iterdir())] == [
        "train",
        "validation",
    ]
    again = raytrain_nlp.evaluate(result.run_dir, scores=tmp_path / "s.jsonl")
    for name in ("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"):
        assert again.metrics[name] == pytest.approx(result.metrics[name], abs=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(rows) == HELD_OUT
    right = sum(row["prediction"] == "chosen" for row in rows) / len(rows)
    assert right == pytest.approx(result.metrics["eval_rewards/accuracies"])
