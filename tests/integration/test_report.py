"""The page of a run: its figures through a restart, nothing from outside, no text of the user's taken for HTML; several
runs, a sweep.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import plain_job

import raytrain_nlp
from raytrain_nlp.reporting.history import read_history
from raytrain_nlp.run.saved_run import find_run


def write_run(folder: Path, name: str, steps: int = 30, resumed_at: int | None = None, **record: Any) -> Path:
    """A run's folder as training leaves it: an event a step; where it was resumed, six steps were done twice, first
    with other figures.
    """
    run = folder / "runs" / name
    (run / "model").mkdir(parents=True)
    (run / "model" / "tokenizer_config.json").write_text("{}")
    job = plain_job(folder, name, data={"validation": "<b>v</b>.jsonl"})
    result = {
        "metrics": {"eval_loss": 0.5, "eval_accuracy": 0.875},
        "rows": {"train": 480, "validation": 51},
        "bad_rows": {"train": 3},
        "labels": ["a", "b"],
    }
    (run / "run.json").write_text(
        json.dumps({"status": "finished", "job": job, "result": result, "versions": {"torch": "2"}, **record})
    )
    events: list[dict[str, Any]] = [{"kind": "start", "time": 0, "step": 0}]

    def log(first: int, last: int, shift: float) -> None:
        for step in range(first, last + 1):
            metrics = {
                "loss": 1 / step + shift,
                "tokens_per_second": 100.0,
                "data_wait_share": 0.01,
                "padding_share": 0.1,
                "learning_rate": 1e-3,
            }
            events.append({"kind": "log", "time": 1000 * step, "step": step, "metrics": metrics})

    if resumed_at:
        log(1, resumed_at + 6, 5.0)
        events.append({"kind": "resume", "time": 1000 * resumed_at, "step": resumed_at})
        log(resumed_at + 1, steps, 0.0)
    else:
        log(1, steps, 0.0)
    events += [
        {"kind": "log", "time": 1000 * steps, "step": step, "metrics": {"eval_loss": 0.6, "eval_accuracy": 0.8}}
        for step in (steps // 2, steps)
    ]
    events.append({"kind": "notice", "time": 1000 * steps, "text": "a <script> of a warning"})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


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
        and [Path(path).read_bytes()[:4] for path in result.pictures] == [b"\x89PNG"] * 5
    )
    assert (
        "went on from step 10" in text and "<td>0.875</td>" in text and "8 (95 % of rows up to 20, longest 30)" in text
    )
    assert "&lt;b&gt;v&lt;/b&gt;.jsonl" in text and "a &lt;script&gt; of a warning" in text
    assert "<script" not in text and "<b>" not in text
    assert (
        all(source.startswith("data:image/png;base64,") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
        and "http" not in text
    )


def test_runs_are_compared_and_a_sweep_shows_its_trials(tmp_path: Path) -> None:
    trial = write_run(tmp_path / "runs" / "tuned", "trials")  # a place for the trial, moved below
    (tmp_path / "runs" / "tuned" / "trials").mkdir(exist_ok=True)
    trial.rename(tmp_path / "runs" / "tuned" / "trials" / "trial-0001")
    (tmp_path / "runs" / "tuned" / "trials" / "trial-0001" / "trial.json").write_text(
        json.dumps({"mlflow_run_id": "abc"})
    )
    (tmp_path / "runs" / "tuned" / "sweep.json").write_text(json.dumps({"result": {"best_trial": 1}}))
    (tmp_path / "runs" / "tuned" / "trials.csv").write_text(
        "trial,status,lora.r,eval_accuracy,seconds\n0,stopped,4,0.5123456,3.1\n1,finished,8,0.875,9.1\n"
    )
    best = find_run(tmp_path / "runs" / "tuned")
    assert (best.paths.run.name, best.storage, best.mlflow_run_id) == ("trial-0001", tmp_path / "runs", "abc")
    other = write_run(tmp_path, "plain", mlflow_run_id="def")
    assert (find_run(other).storage, find_run(other).mlflow_run_id) == (tmp_path / "runs", "def")
    result = raytrain_nlp.report([tmp_path / "runs" / "tuned", other], tmp_path / "both.html")
    text = Path(result.page).read_text()
    assert "2 runs compared" in text and "<th>tuned</th><th>plain</th>" in text
    assert "<td>stopped</td><td>4</td><td>0.5123</td>" in text and "3.1" not in re.sub(r'src="[^"]*"', "", text)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "mine")
    with pytest.raises(raytrain_nlp.InputError, match="is no folder of a run.*Did you mean 'mine'"):
        raytrain_nlp.report(tmp_path / "runs" / "mime")
