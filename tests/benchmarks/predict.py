"""Rows a second of predictions: ours, and a plain loop of transformers in one process, on the same model, rows and
cores.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/predict.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json predict.json

The loop pads each batch to its longest row (the tokenizer's `padding=True`), takes rows in their order and all cores as
threads. Ours has one process for each core. Both rates leave out the start; ours also writes its rows, which the loop
need not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import bench
import figures
from process import Child


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--loop":
        return plain_loop(json.loads(sys.argv[2]))
    parser = bench.build_parser(__doc__, steps=1)
    parser.add_argument("--rows", type=int, default=8_000, help="rows to predict (default %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="rows of a forward on either side (default %(default)s)"
    )
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        rows = bench.write_rows(folder / "rows.jsonl", args.rows, args.seed)
        job = bench.build_job(args, folder, "run", bench.write_rows(folder / "train.jsonl", 64, args.seed), ["text"], 0)
        run_dir = bench.start_ours(job).finish().output["run_dir"]
        for repetition in range(args.repeat):
            for side in ("ours", "loop") if repetition % 2 == 0 else ("loop", "ours"):
                measure = measure_ours if side == "ours" else measure_loop
                run = measure(args, run_dir, rows, folder / f"out-{repetition}.parquet")
                runs.append({"side": side, "repetition": repetition, **run})
                figures.say(f"repetition {repetition + 1}/{args.repeat}, {side}: {run['rows_per_second']:.0f} rows/s")
    report(args, runs)
    return None


def measure_ours(args: argparse.Namespace, run_dir: str, rows: Path, out: Path) -> dict[str, Any]:
    command = [
        "predict",
        run_dir,
        "--input",
        str(rows),
        "--output",
        str(out),
        "--batch-size",
        str(args.batch_size),
        "--json",
    ]
    finished = Child([sys.executable, "-m", "raytrain_nlp.cli.main", *command]).finish()
    assert finished.output["rows"] == args.rows
    return {
        "rows_per_second": finished.output["rows_per_second"],
        "seconds": finished.seconds,
        "load_before": finished.load,
    }


def measure_loop(args: argparse.Namespace, run_dir: str, rows: Path, out: Path) -> dict[str, Any]:
    settings = {"model": f"{run_dir}/model", "rows": str(rows), "batch": args.batch_size, "threads": os.cpu_count()}
    finished = Child([sys.executable, __file__, "--loop", json.dumps(settings)]).finish()
    return {
        "rows_per_second": args.rows / finished.output["loop_seconds"],
        "seconds": finished.seconds,
        "load_before": finished.load,
    }


def plain_loop(settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"]).eval()
    texts = [json.loads(line)["text"] for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]
    started, shares = time.time(), []
    with torch.inference_mode():
        for start in range(0, len(texts), settings["batch"]):
            inputs = tokenizer(
                texts[start : start + settings["batch"]],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            shares += model(**inputs).logits.softmax(-1).tolist()
    print(json.dumps({"loop_seconds": time.time() - started, "rows": len(shares)}), flush=True)


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    summary = {
        side: figures.median([run["rows_per_second"] for run in runs if run["side"] == side])
        for side in ("ours", "loop")
    }
    summary["ours/loop"] = figures.ratio(summary["ours"], summary["loop"])
    figures.print_table(
        f"rows a second, {args.rows} rows, medians of {args.repeat}",
        ["", ""],
        [[name, value] for name, value in summary.items()],
    )
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
