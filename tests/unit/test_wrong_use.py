"""Wrong use of the verbs around a run: exit code 2 and one line that names the flag or argument, before anything is
loaded or written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import plain_job, write_job, write_rows

from raytrain_nlp.cli.main import main

KINDS: dict[str, tuple[list[str], str]] = {
    "evaluate: no run": (["evaluate", "{runs}/min"], "RUN: is no folder of a run ({runs}/min). Did you mean 'mine'?"),
    "evaluate: no data at all": (
        ["evaluate", "{run}"],
        "--data: is missing, and the run has no validation data of its own. Name a file.",
    ),
    "evaluate: too many workers": (
        ["evaluate", "{run}", "--data", "x.jsonl", "--set", "workers.num_workers=9999"],
        "workers.num_workers: 9999 workers",
    ),
    "evaluate: a run without weights": (
        ["evaluate", "{run}", "--data", "{folder}/rows.jsonl"],
        "RUN: has neither a model nor a checkpoint ({run})",
    ),
    "evaluate: an unknown key": (
        ["evaluate", "{run}", "--data", "x.jsonl", "--set", "worker.num_workers=1"],
        "worker: unknown key. Did you mean 'workers'?",
    ),
    "predict: no output": (["predict", "{run}", "--input", "x.jsonl"], "Missing option '--output'"),
    "predict: an unknown suffix": (
        ["predict", "{run}", "--input", "{folder}/rows.jsonl", "--output", "{folder}/out.txt"],
        "--output: has no known suffix",
    ),
    "predict: generation without a value": (
        [
            "predict",
            "{run}",
            "--input",
            "{folder}/rows.jsonl",
            "--output",
            "{folder}/out.jsonl",
            "--generation",
            "beams",
        ],
        "--generation: is not KEY=VALUE (beams)",
    ),
    "predict: a batch of none": (
        ["predict", "{run}", "--input", "x.jsonl", "--output", "out.jsonl", "--batch-size", "0"],
        "'--batch-size'",
    ),
    "export: an unknown type": (
        ["export", "{run}", "--output", "{folder}/out", "--dtype", "int4"],
        "--dtype: is unknown (int4)",
    ),
    "export: over a file": (
        ["export", "{run}", "--output", "{folder}/rows.jsonl"],
        "--output: is a file ({folder}/rows.jsonl)",
    ),
    "export: over the run": (
        ["export", "{run}", "--output", "{run}"],
        "--output: would replace the run itself ({run})",
    ),
    "report: no run": (["report", "{folder}"], "RUN: is no folder of a run ({folder})"),
    "report: no run named": (["report"], "Missing argument 'RUN...'"),
    "check: no file": (["check", "{folder}/absent.yaml"], "{folder}/absent.yaml: "),
    "check: a price without calibration": (["check", "{job}", "--price", "3"], "--price: needs --calibrate. Add it."),
    "check: a negative price": (["check", "{job}", "--calibrate", "--price", "-3"], "--price: is below 0 (-3)"),
    "check: no steps": (
        ["check", "{job}", "--calibrate", "--calibration-steps", "0"],
        "--calibration-steps: is below 1 (0)",
    ),
    "check: an amount that is none": (
        ["check", "{job}", "--worker-memory", "80 apples"],
        "--worker-memory: is no amount of memory (80 apples)",
    ),
    "doctor: an unknown flag": (["doctor", "--storage", "x"], "No such option: --storage"),
    "doctor: an argument": (["doctor", "runs"], "Got unexpected extra argument"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run that was interrupted before its first checkpoint, rows, and a job."""
    folder = tmp_path_factory.mktemp("wrong")
    run = folder / "runs" / "mine"
    (run / "model").mkdir(parents=True)
    (run / "model" / "tokenizer_config.json").write_text("{}")
    write_rows(folder / "rows.jsonl", 4)
    job = plain_job(folder, "mine")
    (run / "run.json").write_text(json.dumps({"status": "failed", "job": job, "labels": ["0", "1"]}))
    return {"folder": str(folder), "runs": str(run.parent), "run": str(run), "job": write_job(job, folder / "job.json")}


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_and_exit_code_2(
    places: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = KINDS[kind]
    before = {path: path.stat().st_mtime_ns for path in Path(places["folder"]).rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["raytrain-nlp", *(argument.format(**places) for argument in arguments)])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]  # stages end with dots
    assert (ended.value.code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ") and expected.format(**places) in lines[0]
    assert {path: path.stat().st_mtime_ns for path in Path(places["folder"]).rglob("*") if path.is_file()} == before


def test_every_verb_after_training_is_covered() -> None:
    assert {arguments[0] for arguments, _ in KINDS.values()} == {
        "evaluate",
        "predict",
        "export",
        "report",
        "check",
        "doctor",
    }
