"""Memory of a worker as `check` predicts it, against the peak a run of the same job has: model sizes x ZeRO stages x
LoRA, on CPU.

    python tests/benchmarks/memory_plan.py --tokenizer TOKENIZERS/bert-base-uncased --json memory_plan.json

BERT classifiers from scratch, 2 workers, micro-batches of 8 rows of 128 tokens, a few steps, a checkpoint and the
export. The measured figure is the most any rank had resident (VmHWM, from the `end` event): all its pages, those it
shares with the process it was forked from and those of shared memory as well, because that is what a machine without
the fork server needs and what the kernel counts where memory runs out. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench
import figures

SIZES = {"29M": (512, 4), "81M": (768, 8), "159M": (1024, 10)}
"""Hidden size and layers, by parameters."""
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def main() -> None:
    parser = bench.build_parser(__doc__, steps=4, repeat=1)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--zero-stages", nargs="+", type=int, choices=[0, 1, 2, 3], default=[0, 2, 3])
    parser.add_argument("--lora", nargs="+", type=int, choices=[0, 1], default=[0, 1])
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        train = write_rows(folder / "rows.jsonl", args.seed)
        for size, stage, lora in itertools.product(args.sizes, args.zero_stages, args.lora):
            run = measure(args, folder, train, size, stage, bool(lora))
            runs.append(run)
            shown = (
                f"{run['predicted_mb']:.0f} MB predicted, {run['measured_mb']:.0f} measured "
                f"({run['error_percent']:+.1f} %)"
            )
            figures.say(f"{size} ZeRO {stage}{' LoRA' if lora else ''}: {shown}")
    report(args, runs)


def write_rows(path: Path, seed: int) -> Path:
    """Rows longer than `max_length`, so that every micro-batch is as wide as the plan's widest."""
    draw = random.Random(seed)
    words = "ada bell curie darwin euler fermi gauss hopper ising joule kepler lovelace maxwell noether".split()
    rows = ({"text": " ".join(draw.choices(words, k=140)), "label": number % 2} for number in range(200))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def measure(args: argparse.Namespace, folder: Path, train: Path, size: str, stage: int, lora: bool) -> dict[str, Any]:
    hidden, layers = SIZES[size]
    config = {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }
    sections: dict[str, Any] = {"model": {"config": config}, "checkpoint": {"save_strategy": "epoch"}}
    job = bench.build_job(
        args,
        folder / "runs",
        f"{size}-{stage}-{'lora' if lora else 'full'}",
        train,
        ["text"],
        stage,
        **sections,
        **({"lora": LORA} if lora else {}),
    )
    finished = bench.start_ours(job).finish()
    command = [
        sys.executable,
        "-m",
        "raytrain_nlp.cli.main",
        "check",
        str(folder / "runs" / f"{job['name']}.yaml"),
        "--json",
    ]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    peaks = next(
        event["peak_memory"]
        for event in reversed(bench.read_events(finished.output["run_dir"]))
        if event["kind"] == "end"
    )
    predicted, measured = plan["memory"]["total"] / 1e6, max(peaks) / 1e6
    return {
        "size": size,
        "zero_stage": stage,
        "lora": lora,
        "parameters": plan["parameters"],
        "parts_mb": {name: part / 1e6 for name, part in plan["memory"]["parts"].items()},
        "predicted_mb": predicted,
        "measured_mb": measured,
        "ranks_mb": [peak / 1e6 for peak in peaks],
        "error_percent": (predicted / measured - 1) * 100,
        "seconds": finished.seconds,
    }


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"{run['size']} ZeRO {run['zero_stage']}{' LoRA' if run['lora'] else ''}",
            *(f"{part:.0f}" for part in run["parts_mb"].values()),
            f"{run['predicted_mb']:.0f}",
            f"{run['measured_mb']:.0f}",
            f"{run['error_percent']:+.1f}",
        ]
        for run in runs
    ]
    worst = max(abs(run["error_percent"]) for run in runs)
    figures.print_table(
        f"memory of a worker in MB, worst error {worst:.1f} %",
        ["model", *runs[0]["parts_mb"], "predicted", "measured", "error %"],
        rows,
    )
    figures.write_report(args, {"worst_error_percent": worst, "within_15_percent": worst <= 15}, runs)


if __name__ == "__main__":
    main()
