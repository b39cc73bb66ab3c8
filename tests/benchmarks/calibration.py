"""Time of a step and of a run as `check --calibrate` predicts them, against a run of the same job.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/calibration.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json calibration.json

MRPC with a BERT from scratch, batches by length, 2 workers, ZeRO 0 and 3. Prediction and run in turn; the run's step is
its mean from the warm-up that the rates of all benchmarks leave out to its last step; its time is that of the whole
command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import bench
import figures
from process import Child


def main() -> None:
    parser = bench.build_parser(__doc__, steps=60, repeat=1)
    parser.add_argument("--zero-stages", nargs="+", type=int, choices=[0, 1, 2, 3], default=[0, 3])
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        for repetition in range(args.repeat):
            for stage in args.zero_stages:
                run = compare(args, folder, stage, repetition)
                runs.append(run)
                figures.say(
                    f"ZeRO {stage}: step {run['predicted_s']:.3f} s predicted, {run['measured_s']:.3f} measured "
                    f"({run['error_percent']:+.1f} %)"
                )
    report(args, runs)


def compare(args: argparse.Namespace, folder: Path, stage: int, repetition: int) -> dict[str, Any]:
    job = bench.build_job(
        args, folder / "runs", f"zero{stage}-{repetition}", bench.mrpc(), ["sentence1", "sentence2"], stage
    )
    file = folder / f"{job['name']}.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")
    plan = Child([sys.executable, "-m", "raytrain_nlp.cli.main", "check", str(file), "--calibrate", "--json"]).finish()
    found = plan.output["calibration"]
    finished = bench.start_ours(job).finish()
    logs = bench.loss_logs(bench.read_events(finished.output["run_dir"]))
    rate = figures.steady_rate(logs, 1, bench.cadence(args.steps)[1])
    return {
        "zero_stage": stage,
        "predicted_s": found["step_seconds"],
        "measured_s": 1 / rate,
        "error_percent": (found["step_seconds"] * rate - 1) * 100,
        "predicted_run_s": found["total_seconds"],
        "measured_run_s": finished.seconds,
        "calibration_s": plan.seconds,
        "load_before": finished.load,
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    names = ("predicted_s", "measured_s", "error_percent", "predicted_run_s", "measured_run_s", "calibration_s")
    figures.print_table(
        "a step and a run, seconds",
        ["job", *names],
        [[f"ZeRO {run['zero_stage']}", *(figures.shown(run[name], 3) for name in names)] for run in runs],
    )
    figures.write_report(args, {"worst_error_percent": max(abs(run["error_percent"]) for run in runs)}, runs)


if __name__ == "__main__":
    main()
