"""The page of a run: its figures through a restart, nothing from outside, no text of the user's taken for HTML; several
runs, a sweep.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from written_runs import write_run, write_sweep

import raytrain_nlp
from raytrain_nlp.reporting.history import read_history
from raytrain_nlp.run.saved_run import find_run


def test_steps_that_were_repeated_count_once(tmp_path: Path) -> None:
    history = read_history(find_run(write_run(tmp_path, "resumed", resumed_at=10)))
    steps, values = history.line("loss")
    assert steps == list(range(1, 31)) and history.resumed == [10]
    assert values == [1 / step + (5.0 if step <= 10 else 0.0) for step in steps]
    assert history.evaluated == ["eval_loss", "eval_accuracy"]


def test_a_page_of_one_run(tmp_path: Path) -> None:
    result = raytrain_nlp.report(
        write_run(
            tmp_path,
            "resumed",
            resumed_at=10,
            lengths={"train": {"mean": 9.0, "p5": 3.0, "p50": 8.0, "p95": 20.0, "p100": 30.0}},
        )
    )
    text = Path(result.page).read_text()
    assert (
        Path(result.page).name == "report.html"
        and [Path(path).read_bytes()[:4] for path in result.pictures] == [b"\x89PNG"] * 6
    )
    assert (
        "went on from step 10" in text and "<td>0.875</td>" in text and "8 (95 % of rows up to 20, longest 30)" in text
    )
    assert "&lt;b&gt;v&lt;/b&gt;.jsonl" in text and "a &lt;script&gt; of a warning" in text
    assert "<script> of" not in text and "<b>v" not in text
    html = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', html))


def test_runs_are_compared_and_a_sweep_shows_its_trials(tmp_path: Path) -> None:
    space = {"lora.r": {"choice": [4, 8, 16]}}
    trials = [
        {"params": {"lora.r": 4}, "status": "stopped", "history": [{"step": 9, "eval_accuracy": 0.5123456}]},
        {"params": {"lora.r": 8}, "metrics": {"eval_accuracy": 0.875}, "mlflow_run_id": "abc"},
    ]
    sweep = write_sweep(tmp_path, "tuned", trials, space, result={"best_trial": 1})
    best = find_run(sweep)
    assert (best.paths.run.name, best.storage, best.mlflow_run_id) == ("trial-0001", tmp_path / "runs", "abc")
    other = write_run(tmp_path, "plain", mlflow_run_id="def")
    assert (find_run(other).storage, find_run(other).mlflow_run_id) == (tmp_path / "runs", "def")
    result = raytrain_nlp.report([sweep, other], tmp_path / "both.html")
    text = Path(result.page).read_text()
    assert "2 runs compared" in text and "<th>tuned</th><th>plain</th>" in text
    assert "<td>stopped</td><td>4</td><td>0.5123</td>" in text and "Keys of the jobs" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "mine")
    with pytest.raises(raytrain_nlp.InputError, match="is no folder of a run.*Did you mean 'mine'"):
        raytrain_nlp.report(tmp_path / "runs" / "mime")
