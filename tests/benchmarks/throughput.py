"""Steady-state rows a second on identical batches: our command line and plain Hugging Face `Trainer`, ZeRO 0 and ZeRO
3.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/throughput.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json throughput.json

Both sides train the same BERT from scratch on the rows of MRPC, the same rows at the same step (the peer is given the
plan's global batches), with the same optimizer, logging interval, number of processes and threads. The rate leaves out
the first two fifths of the steps and is computed from the times of the logs, by one formula for both sides. The model
has no dropout, so that the losses of both sides show whether the batches were the same. The peer's ZeRO-3 configuration
is the one that Hugging Face documents ("auto").
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bench
import figures
import numpy as np

COLUMNS = ["sentence1", "sentence2"]
SAME_LOSS = 1e-3


def main() -> None:
    parser = bench.build_parser(__doc__, steps=100)
    parser.add_argument("--zero-stages", type=int, nargs="+", default=[0, 3], choices=[0, 3], help="default: 0 3")
    parser.add_argument(
        "--strategy",
        default="group_by_length",
        choices=["group_by_length", "random"],
        help="how the plan makes batches (default %(default)s)",
    )
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        figures.say("planning the batches")
        rows = write_batches(args, folder / "batches.json")
        for repetition in range(args.repeat):
            for stage in args.zero_stages:
                sides = ("ours", "peer") if repetition % 2 == 0 else ("peer", "ours")
                for side in sides:
                    run = measure(args, folder, side, stage, repetition, rows)
                    runs.append(run)
                    rate = figures.shown(run["samples_per_second"])
                    figures.say(
                        f"repetition {repetition + 1}/{args.repeat}, ZeRO {stage}, {side}: {rate} rows/s "
                        f"({run['seconds']:.0f} s)"
                    )
    report(args, runs)


def write_batches(args: argparse.Namespace, file: Path) -> int:
    """The plan's first global batches for the peer; returns the rows of the split."""
    rows = [json.loads(line) for line in bench.mrpc().read_text(encoding="utf-8").splitlines()]
    from transformers import AutoTokenizer

    from raytrain_nlp.data.plan import Plan, PlanSpec

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    encoded = tokenizer(*[[row[column] for row in rows] for column in COLUMNS], truncation=True, max_length=128)[
        "input_ids"
    ]
    size = args.batch * args.workers
    if args.steps > len(rows) // size:
        raise SystemExit(
            f"error: --steps: {args.steps} steps of {size} rows are more than one epoch of {len(rows)} rows. Give at "
            f"most {len(rows) // size}."
        )
    plan = Plan(PlanSpec(len(rows), args.seed, args.strategy, size), np.array([len(tokens) for tokens in encoded]))
    batches = [plan.at(step)[2].tolist() for step in range(args.steps)]
    if any(len(batch) != size for batch in batches):
        raise SystemExit("error: --steps: the epoch's short batch is among the steps. Give fewer steps.")
    file.write_text(json.dumps(batches), encoding="utf-8")
    return len(rows)


def measure(
    args: argparse.Namespace, folder: Path, side: str, stage: int, repetition: int, rows: int
) -> dict[str, Any]:
    name = f"{side}-zero{stage}-{repetition}"
    _, warm = bench.cadence(args.steps)
    run: dict[str, Any] = {"side": side, "zero_stage": stage, "repetition": repetition}
    if side == "ours":
        training = {"train_sampling_strategy": args.strategy}
        finished = bench.start_ours(
            bench.build_job(args, folder / "ours", name, bench.mrpc(), COLUMNS, stage, training=training)
        ).finish()
        if finished.output["rows"]["train"] != rows:
            raise SystemExit(
                f"error: our run used {finished.output['rows']['train']} rows, the plan was made for {rows}."
            )
        logs = bench.loss_logs(bench.read_events(finished.output["run_dir"]))
        for figure in ("data_wait_share", "padding_share"):
            run[figure] = figures.steady_mean(logs, figure, warm)
    else:
        finished = bench.run_peer(args, folder / name, bench.mrpc(), COLUMNS, stage, batches=folder / "batches.json")
        logs = finished.output["logs"]
        run |= {key: finished.output[key] for key in ("padding_share", "torch_threads")}
    losses = {str(log["step"]): log["loss"] for log in logs}
    rate = figures.steady_rate(logs, args.batch * args.workers, warm)
    return {
        **run,
        "samples_per_second": rate,
        "seconds": finished.seconds,
        "load_before": finished.load,
        "losses": losses,
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    table, summary = [], {}
    for stage in args.zero_stages:
        of = {
            side: [run for run in runs if run["side"] == side and run["zero_stage"] == stage]
            for side in ("ours", "peer")
        }
        rates = {side: [run["samples_per_second"] for run in found] for side, found in of.items()}
        ours, peer = (figures.median(rates[side]) for side in ("ours", "peer"))
        wait = figures.median([run["data_wait_share"] for run in of["ours"]])
        apart = loss_difference(of["ours"][0], of["peer"][0])
        summary[f"zero{stage}"] = {
            "ours": ours,
            "peer": peer,
            "ratio": figures.ratio(ours, peer),
            "ours_data_wait_share": wait,
            "largest_loss_difference": apart,
            "ours_runs": rates["ours"],
            "peer_runs": rates["peer"],
        }
        each = " / ".join(" ".join(figures.shown(rate, 1) for rate in rates[side]) for side in ("ours", "peer"))
        table.append(
            [f"ZeRO {stage}", ours, peer, figures.ratio(ours, peer), figures.shown(wait, 4), f"{apart:.1e}", each]
        )
        if apart > SAME_LOSS:
            figures.say(
                f"warning: ZeRO {stage}: the losses of the two sides differ by {apart:.1e}: were the batches the same?"
            )
    header = [
        "",
        "ours rows/s",
        "peer rows/s",
        "ours/peer",
        "our data wait share",
        "loss difference",
        "each run (ours / peer)",
    ]
    figures.print_table(
        f"steady state, {args.workers} workers x batch {args.batch}, identical batches, medians of {args.repeat}",
        header,
        table,
    )
    figures.write_report(args, summary, runs)


def loss_difference(ours: dict[str, Any], peer: dict[str, Any]) -> float:
    """The largest difference of losses logged at the same step."""
    steps = ours["losses"].keys() & peer["losses"].keys()
    return max((abs(ours["losses"][step] - peer["losses"][step]) for step in steps), default=float("nan"))


if __name__ == "__main__":
    main()
