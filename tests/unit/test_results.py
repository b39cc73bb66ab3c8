"""What verbs return, as a notebook shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from raytrain_nlp.results import Result
from raytrain_nlp.tuning.results import SweepResult


@dataclass(frozen=True)
class Found(Result):
    run_dir: str
    metrics: dict[str, float]
    labels: list[str] = field(default_factory=list)
    scores: str | None = None
    rows: int = 0


def cells(text: str) -> list[tuple[str, str]]:
    return re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", text)


def test_a_table_has_a_line_for_each_value_and_trusts_no_text() -> None:
    result = Found("runs/<script>", {"eval_loss": 0.123456789, "eval_accuracy": 1.0}, ["a & b", "c"])
    assert cells(result._repr_html_()) == [
        ("run_dir", "runs/&lt;script&gt;"),
        ("metrics.eval_loss", "0.123457"),
        ("metrics.eval_accuracy", "1"),
        ("labels", "[&#x27;a &amp; b&#x27;, &#x27;c&#x27;]"),
        ("rows", "0"),
    ]
    assert dict(cells(Found("x", {}, list("abcdefghijk"))._repr_html_()))["labels"] == "11 items"
    assert result.to_dict()["metrics"] == {"eval_loss": 0.123456789, "eval_accuracy": 1.0}


def test_a_sweep_shows_its_trials_too() -> None:
    values: dict[str, Any] = {"best_params": {"lora.r": 8}, "best_metrics": {}, "best_job": "b", "model_dir": "m"}
    table = [{"trial": 0, "status": "<finished>"}, {"trial": 1, "status": "failed"}]
    result = SweepResult("s", 0, **values, trials={"finished": 1}, mlflow_run_id=None, table=table)
    text = result._repr_html_()
    assert ("best_params.lora.r", "8") in cells(text) and "table" not in result.to_dict()
    assert "&lt;finished&gt;" in text and text.count("<tr") == 7 + 3
