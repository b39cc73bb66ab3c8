"""Rows a second of predictions: ours, and a plain loop of transformers in one process, on the same model, rows and
cores, or one GPU.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/predict.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json predict.json

The loop pads each batch to its longest row (the tokenizer's `padding=True`), takes rows in their order and all cores as
threads. Ours has one process for each core. Both rates leave out the start; ours also writes its rows, which the loop
need not. With `--gpu` both have one GPU and compute in bf16, a `DataLoader` with four processes tokenizes for the loop,
and ours makes its batches itself; `gpu.py --only predict` is the same on rows that need no data.
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
    parser.add_argument(
        "--gpu", action="store_true", help="on one GPU: ours in batches of its own choice, the loop in bf16"
    )
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        rows = bench.write_rows(folder / "rows.jsonl", args.rows, args.seed)
        train = bench.write_rows(folder / "train.jsonl", 64, args.seed)
        on_gpu = {"workers": {"num_workers": 1, "use_gpu": True}, "training": {"bf16": True}} if args.gpu else {}
        job = bench.build_job(args, folder, "run", train, ["text"], 0, **on_gpu)
        run_dir = bench.start_ours(job).finish().output["run_dir"]
        for repetition in range(args.repeat):
            for side in ("ours", "loop") if repetition % 2 == 0 else ("loop", "ours"):
                if side == "ours":
                    out, size = folder / f"out-{repetition}.parquet", None if args.gpu else args.batch_size
                    run = measure_ours(run_dir, rows, out, args.rows, size)
                else:
                    run = measure_loop(f"{run_dir}/model", rows, args.rows, args.batch_size, args.gpu)
                runs.append({"side": side, "repetition": repetition, **run})
                figures.say(f"repetition {repetition + 1}/{args.repeat}, {side}: {run['rows_per_second']:.0f} rows/s")
    report(args, runs)
    return None


def measure_ours(
    run_dir: str, rows: Path, out: Path, count: int, batch_size: int | None = None, timeout_s: float = 3600
) -> dict[str, Any]:
    """`predict` of a run; without `batch_size` in batches of its own choice."""
    command = ["predict", run_dir, "--input", rows, "--output", out, "--json"]
    command += ["--batch-size", batch_size] if batch_size else []
    finished = Child([sys.executable, "-m", "raytrain_nlp.cli.main", *map(str, command)]).finish(timeout_s)
    assert finished.output["rows"] == count
    return {
        "rows_per_second": finished.output["rows_per_second"],
        "seconds": finished.seconds,
        "load_before": finished.load,
    }


def measure_loop(
    model_dir: str, rows: Path, count: int, batch_size: int, gpu: bool, timeout_s: float = 3600
) -> dict[str, Any]:
    settings = {"model": model_dir, "rows": str(rows), "batch": batch_size, "threads": os.cpu_count(), "gpu": gpu}
    finished = Child([sys.executable, __file__, "--loop", json.dumps(settings)]).finish(timeout_s)
    assert finished.output["rows"] == count
    return {
        "rows_per_second": count / finished.output["loop_seconds"],
        "seconds": finished.seconds,
        "load_before": finished.load,
    }


def plain_loop(settings: dict[str, Any]) -> None:
    """Rows in their order, each batch padded to its longest row; on a GPU under bf16's autocast, while processes of a
    `DataLoader` tokenize.
    """
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    gpu, device = settings["gpu"], "cuda" if settings["gpu"] else "cpu"
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"]).to(device).eval()
    texts = [json.loads(line)["text"] for line in Path(settings["rows"]).read_text(encoding="utf-8").splitlines()]

    def collate(batch: list[str]) -> Any:
        return tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")

    loader = DataLoader(texts, settings["batch"], collate_fn=collate, num_workers=4 if gpu else 0, pin_memory=gpu)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=gpu):
        model(**collate(texts[: settings["batch"]]).to(device)).logits.cpu()  # kernels are loaded
        started, shares = time.time(), []
        for inputs in loader:
            shares += model(**inputs.to(device, non_blocking=True)).logits.float().softmax(-1).tolist()
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
