"""What length bucketing is worth: rows a second on MRPC, our default batching against the peer's two ways to pad.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/padding.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json padding.json

`max_length` is the default of Hugging Face's example script (every row padded to 128), `longest` its dynamic padding,
both with batches in random order. Same model, batch size (32 a worker, as in the README of that script), number of
steps and processes, plain DDP. Rates leave out the first 10 steps; the padding share is that of the first rank.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import bench
import figures

COLUMNS = ["sentence1", "sentence2"]
SIDES = ("ours", "max_length", "longest")


def main() -> None:
    parser = bench.build_parser(__doc__, steps=60)
    parser.set_defaults(batch=32)
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        for repetition in range(args.repeat):
            for side in SIDES if repetition % 2 == 0 else reversed(SIDES):
                run = measure(args, folder, side, repetition)
                runs.append(run)
                rate = figures.shown(run["samples_per_second"])
                figures.say(
                    f"repetition {repetition + 1}/{args.repeat}, {side}: {rate} rows/s ({run['seconds']:.0f} s)"
                )
    report(args, runs)


def measure(args: argparse.Namespace, folder: Path, side: str, repetition: int) -> dict[str, Any]:
    name = f"{side}-{repetition}"
    _, warm = bench.cadence(args.steps)
    if side == "ours":
        finished = bench.start_ours(bench.build_job(args, folder / "ours", name, bench.mrpc(), COLUMNS, 0)).finish()
        logs = bench.loss_logs(bench.read_events(finished.output["run_dir"]))
        share = figures.steady_mean(logs, "padding_share", warm)
    else:
        finished = bench.run_peer(args, folder / name, bench.mrpc(), COLUMNS, 0, padding=side)
        logs, share = finished.output["logs"], finished.output["padding_share"]
    rate = figures.steady_rate(logs, args.batch * args.workers, warm)
    return {
        "side": side, "repetition": repetition, "samples_per_second": rate, "padding_share": share,
        "seconds": finished.seconds, "load_before": finished.load,
    }  # fmt: skip


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    rates = {side: [run["samples_per_second"] for run in runs if run["side"] == side] for side in SIDES}
    names = {"ours": "ours (default)", "max_length": "peer, max_length", "longest": "peer, longest"}
    table, summary = [], {}
    for side in SIDES:
        share = figures.median([run["padding_share"] for run in runs if run["side"] == side])
        times = figures.ratio(figures.median(rates["ours"]), figures.median(rates[side]))
        summary[side] = {
            "samples_per_second": figures.median(rates[side]),
            "ours_over_this": times,
            "padding_share": share,
            "runs": rates[side],
        }
        each = " ".join(figures.shown(rate, 1) for rate in rates[side])
        table.append([names[side], summary[side]["samples_per_second"], times, share, each])
    header = ["", "rows/s", "ours/this", "padding share", "each run"]
    figures.print_table(
        f"MRPC, {args.workers} workers x batch {args.batch}, plain DDP, medians of {args.repeat}", header, table
    )
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
