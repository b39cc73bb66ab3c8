"""Seconds of a sweep of short trials, and from trial start to first step: ours against the stock nested pattern and
plain runs in a row.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/sweep.py --tokenizer TOKENIZERS/bert-base-uncased --json sweep.json

`nested`: a `TorchTrainer` with the plain `Trainer` loop of peer.py in a function trainable of Ray Tune, as Ray's
    documentation shows.
`row`: the same learning rates, one run of peer.py under torchrun after another. These three train with ZeRO-3 on two
    workers.
`search`: `Trainer.hyperparameter_search(backend="ray")`, which trains each trial in one process of two threads, without
    ZeRO.
All sides see the same rows in batches of the same size.
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

COLUMNS = ["sentence1", "sentence2"]
SIDES = ("ours", "nested", "row", "search")


def main() -> None:
    parser = bench.build_parser(__doc__, steps=10, repeat=1)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        rows = folder / "rows.jsonl"
        rows.write_text(
            "".join(line + "\n" for line in bench.mrpc().read_text(encoding="utf-8").splitlines()[:400]),
            encoding="utf-8",
        )
        for repetition in range(args.repeat):
            for side in args.sides if repetition % 2 == 0 else args.sides[::-1]:
                measure = {"ours": measure_ours, "nested": measure_stock, "row": measure_row, "search": measure_stock}[
                    side
                ]
                run = measure(args, folder / f"{side}-{repetition}", rows)
                runs.append({"side": side, "repetition": repetition, **run})
                figures.say(
                    f"repetition {repetition + 1}/{args.repeat}, {side}: {run['seconds']:.1f} s, to the first step "
                    f"{figures.shown(run['to_first_step'], 1)} s"
                )
    report(args, runs)


def rates(args: argparse.Namespace) -> list[float]:
    return [1e-5 * (i + 1) for i in range(args.trials)]


def measure_ours(args: argparse.Namespace, folder: Path, rows: Path) -> dict[str, Any]:
    evaluation = {"eval_strategy": "steps", "eval_steps": args.steps}
    job = bench.build_job(args, folder, "base", rows, COLUMNS, 3)
    job["data"]["validation"], job["training"] = str(rows), {**job["training"], **evaluation}
    sweep = {
        "kind": "sweep",
        "name": "sweep",
        "job": job,
        "search_space": {"training.learning_rate": {"grid": rates(args)}},
        "searcher": {"type": "grid"},
        "metric": "eval_loss",
        "max_concurrent_trials": 1,
    }
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    finished = Child(
        [sys.executable, "-m", "raytrain_nlp.cli.main", "sweep", str(folder / "sweep.yaml"), "--json"]
    ).finish()
    starts = []
    for trial in sorted((folder / "sweep" / "trials").glob("trial-*")):
        started = json.loads((trial / "trial.json").read_text(encoding="utf-8"))["started"]
        first = next(event["time"] for event in bench.read_events(trial) if event.get("phase") == "first step")
        starts.append(first / 1000 - started)
    return {
        "seconds": finished.seconds,
        "load_before": finished.load,
        "to_first_step": figures.median(starts),
        "starts": starts,
    }


def measure_stock(args: argparse.Namespace, folder: Path, rows: Path) -> dict[str, Any]:
    """A script of its own does all trials: nested.py or hp_search.py."""
    script = "nested.py" if folder.name.startswith("nested") else "hp_search.py"
    folder.mkdir(parents=True)
    settings = {
        "tokenizer": str(args.tokenizer.resolve()),
        "config": args.model_config,
        "rows": str(rows),
        "columns": COLUMNS,
        "rates": rates(args),
        "steps": args.steps,
        "batch": args.batch,
        "workers": args.workers,
        "folder": str(folder.resolve()),
        "deepspeed": bench.PEER_ZERO3,
        "seed": args.seed,
    }
    finished = Child([sys.executable, str(Path(__file__).with_name(script)), json.dumps(settings)]).finish()
    return {
        "seconds": finished.seconds,
        "load_before": finished.load,
        "to_first_step": figures.median(finished.output["starts"]),
        "starts": finished.output["starts"],
    }


def measure_row(args: argparse.Namespace, folder: Path, rows: Path) -> dict[str, Any]:
    finished = [
        bench.run_peer(
            args,
            folder / str(i),
            rows,
            COLUMNS,
            3,
            learning_rate=rate,
            validation=rows,
            eval_strategy="steps",
            eval_steps=args.steps,
        )
        for i, rate in enumerate(rates(args))
    ]
    starts = [run.output["marks"]["first step"] / 1000 - run.started for run in finished]
    return {
        "seconds": finished[-1].ended - finished[0].started,
        "load_before": finished[0].load,
        "to_first_step": figures.median(starts),
        "starts": starts,
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    table, summary = [], {}
    for side in args.sides:
        of = [run for run in runs if run["side"] == side]
        summary[side] = {name: figures.median([run[name] for run in of]) for name in ("seconds", "to_first_step")}
    for side in args.sides:
        share = figures.ratio(summary.get("ours", {}).get("seconds"), summary[side]["seconds"])
        table.append([side, summary[side]["seconds"], summary[side]["to_first_step"], share])
    title = f"{args.trials} trials of {args.steps} steps, ZeRO 3, {args.workers} workers, medians of {args.repeat}"
    figures.print_table(title, ["", "seconds", "start to first step s", "ours / this"], table)
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
