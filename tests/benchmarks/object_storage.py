"""Do uploads hold training up? Steps of a run in a slow, failing object storage against the same run in a folder.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/object_storage.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json object_storage.json

MRPC with a BERT from scratch, 2 workers, ZeRO 3, a checkpoint every 40 of 120 steps. The S3 server (moto, on the same
cores) answers after 2 s and lets one write in five fail. The two runs take turns. A step is the mean from the warm-up
to the last step, the writing of checkpoints included. Both must end with the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import bench
import figures

sys.path.append(str(Path(__file__).resolve().parents[1]))
from object_store import ObjectStore, free_port, serving

SAVES = 3


def main() -> None:
    parser = bench.build_parser(__doc__, steps=120, repeat=2)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds before each answer (default %(default)s)")
    parser.add_argument("--failing", type=float, default=0.2, help="share of writes that fail (default %(default)s)")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder, serving(free_port(), folder, "bucket") as store:
        os.environ.update(store.environment)
        for repetition in range(args.repeat):
            for where in ("folder", "s3") if repetition % 2 == 0 else ("s3", "folder"):
                runs.append(measure(args, folder, store, where, repetition))
                figures.say(
                    f"{where}: {runs[-1]['step_s']:.3f} s a step, {runs[-1]['seconds']:.0f} s in all, "
                    f"{runs[-1]['failed_writes']} writes failed"
                )
    if len({run["weights"] for run in runs}) > 1:
        sys.exit("error: the weights differ.")
    report(args, runs)


def measure(args: argparse.Namespace, folder: Path, store: ObjectStore, where: str, repetition: int) -> dict[str, Any]:
    saves = {"save_strategy": "steps", "save_steps": args.steps // SAVES}
    job = bench.build_job(
        args, folder / "runs", f"{where}-{repetition}", bench.mrpc(), ["sentence1", "sentence2"], 3, checkpoint=saves
    )
    flags = ("--set", "storage_path=s3://bucket/runs") if where == "s3" else ()
    before = store.requests()["failed"]
    store.behave(args.delay, args.failing)
    finished = bench.start_ours(job, *flags).finish()
    failed = store.requests()["failed"] - before
    store.behave()
    if where == "s3":
        objects = store.objects("bucket", f"runs/{job['name']}/")
        events = [json.loads(line) for line in objects[f"runs/{job['name']}/events.jsonl"].splitlines()]
        weights = objects[f"runs/{job['name']}/model/model.safetensors"]
    else:
        events, weights = (
            bench.read_events(finished.output["run_dir"]),
            (Path(finished.output["model_dir"]) / "model.safetensors").read_bytes(),
        )
    rate = figures.steady_rate(bench.loss_logs(events), 1, bench.cadence(args.steps)[1])
    commits = [event["seconds"] for event in events if event["kind"] == "checkpoint"]
    return {
        "where": where,
        "step_s": 1 / rate,
        "seconds": finished.seconds,
        "commit_s": statistics.median(commits),
        "failed_writes": failed,
        "weights": hashlib.sha256(weights).hexdigest(),
        "load_before": finished.load,
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    median = {
        where: statistics.median(run["step_s"] for run in runs if run["where"] == where) for where in ("folder", "s3")
    }
    names = ("step_s", "seconds", "commit_s", "failed_writes")
    rows = [[run["where"], *(figures.shown(run[name], 3) for name in names)] for run in runs]
    figures.print_table(
        "a step, the whole process, from a checkpoint's begin to its commit: seconds", ["run", *names], rows
    )
    figures.write_report(args, {"step_ratio": median["s3"] / median["folder"]}, runs)


if __name__ == "__main__":
    main()
