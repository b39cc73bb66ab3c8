"""Whole-process seconds of a 10-step ZeRO-3 job: our command line against the peer under torchrun, and where ours go.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/startup.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json startup.json

Each of our runs has a fresh storage path, so that it prepares its tokens; both sides validate nothing and write a whole
checkpoint at the end, weights for `from_pretrained` included.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import bench
import figures
from process import Finished

COLUMNS = ["sentence1", "sentence2"]
PEER_POINTS = {
    "process": "ranks started by torchrun",
    "imports": "imports",
    "data": "tokens prepared",
    "model": "model and trainer built",
    "train": "training set up",
    "first step": "first step",
    "last step": "all steps",
    "checkpoint": "checkpoint",
    "end": "end of the script",
}


def main() -> None:
    parser = bench.build_parser(__doc__, steps=10)
    parser.add_argument("--zero-stage", type=int, default=3, choices=[0, 3])
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        for repetition in range(args.repeat):
            for side in ("ours", "peer") if repetition % 2 == 0 else ("peer", "ours"):
                run = (
                    measure_ours(args, folder, repetition) if side == "ours" else measure_peer(args, folder, repetition)
                )
                runs.append({"side": side, "repetition": repetition, **run})
                figures.say(f"repetition {repetition + 1}/{args.repeat}, {side}: {run['seconds']:.1f} s")
    report(args, runs)


def measure_ours(args: argparse.Namespace, folder: Path, repetition: int) -> dict[str, Any]:
    saving = {"save_strategy": "steps", "save_steps": args.steps}
    job = bench.build_job(
        args, folder / f"ours-{repetition}", "startup", bench.mrpc(), COLUMNS, args.zero_stage, checkpoint=saving
    )
    finished = bench.start_ours(job).finish()
    events = bench.read_events(finished.output["run_dir"])
    return {"seconds": finished.seconds, "load_before": finished.load, "timeline": our_timeline(finished, events)}


def our_timeline(finished: Finished, events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds from the process's start to each point, in order of time."""
    phases = {event["phase"]: event["time"] for event in events if event["kind"] == "phase"}
    last = {event["kind"]: event["time"] for event in events if event["kind"] != "log"}
    points = {
        "driver's imports, job checked": (finished.said("looking at the data") or finished.started) * 1000,
        "Ray up, tokens prepared": events[0]["time"],
        "workers' loop entered": phases.get("worker"),
        "workers met, checkpoint looked for": last.get("start"),
        "imports": phases.get("imports"),
        "model and trainer built": phases.get("model"),
        "training set up": phases.get("train"),
        "first step": phases.get("first step"),
        "all steps": bench.loss_logs(events)[-1]["time"],
        "checkpoint": last.get("checkpoint"),
        "export, end of the loop": last.get("end"),
        "exit": finished.ended * 1000,
    }
    return {name: when / 1000 - finished.started for name, when in points.items() if when is not None}


def measure_peer(args: argparse.Namespace, folder: Path, repetition: int) -> dict[str, Any]:
    saving = {"save_strategy": "steps", "save_steps": args.steps}
    finished = bench.run_peer(args, folder / f"peer-{repetition}", bench.mrpc(), COLUMNS, args.zero_stage, **saving)
    marks = finished.output["marks"]
    timeline = {name: marks[key] / 1000 - finished.started for key, name in PEER_POINTS.items() if key in marks}
    return {
        "seconds": finished.seconds,
        "load_before": finished.load,
        "timeline": {**timeline, "exit": finished.seconds},
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    of = {side: [run for run in runs if run["side"] == side] for side in ("ours", "peer")}
    seconds = {side: [run["seconds"] for run in found] for side, found in of.items()}
    ours, peer = (figures.median(seconds[side]) for side in ("ours", "peer"))
    summary = {
        "ours": ours,
        "peer": peer,
        "ratio": figures.ratio(ours, peer),
        "ours_runs": seconds["ours"],
        "peer_runs": seconds["peer"],
        "timeline": {side: median_timeline(found) for side, found in of.items()},
    }
    rows = [
        [side, figures.median(seconds[side]), " ".join(figures.shown(value, 1) for value in seconds[side])]
        for side in seconds
    ]
    title = (
        f"whole process, {args.steps} steps, ZeRO {args.zero_stage}, {args.workers} workers, medians of {args.repeat}"
    )
    figures.print_table(title, ["", "seconds", "each run"], [*rows, ["ours/peer", summary["ratio"], ""]])
    for side, timeline in summary["timeline"].items():
        before, table = 0.0, []
        for name, at in timeline.items():
            table.append([name, at, at - before])
            before = at
        figures.print_table(f"where the seconds of {side} go", ["until", "at s", "this part s"], table)
    figures.write_report(args, summary, runs)


def median_timeline(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: figures.median([run["timeline"].get(name) for run in runs]) for name in runs[0]["timeline"]}


if __name__ == "__main__":
    main()
