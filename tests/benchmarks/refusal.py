"""Seconds from start to exit code 2 for wrong jobs: told from the job file alone, from a look at the files, after
reading the data.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/refusal.py --tokenizer TOKENIZERS/bert-base-uncased \
        --json refusal.json
    ... --hardware      what a job asks of GPUs instead, on a machine with two stand-ins (tests/hooks); the goal is 5 s

Each is the whole process in its own Ray, on MRPC. The goal is 15 s. There is no peer: the same mistake in a script of
transformers is told by a traceback from wherever it happens to fail.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench
import figures

sys.path.append(str(Path(__file__).resolve().parents[1]))
from support import hook_environment

COLUMNS = ["sentence1", "sentence2"]
KINDS: dict[str, dict[str, Any]] = {
    "typo in a key": {"trainig": {}},
    "removed TrainingArguments name": {"training": {"evaluation_strategy": "no"}},
    "missing file": {"data": {"train": "nowhere.jsonl"}},
    "missing column": {"task": {"text_columns": ["sentence3"]}},
    "more workers than CPUs": {"workers": {"num_workers": 5000}},
    "unknown model type": {"model": {"config": {"model_type": "bart-unknown"}}},
    "misspelt key of the model's config": {"model": {"config": {**bench.MODEL, "hiden_size": 4}}},
    "all labels equal": {"data": {"train": "equal.jsonl"}},
    "one row of ten is no JSON": {"data": {"train": "broken.jsonl"}},
}
_GPU = {"use_gpu": True, "num_workers": 1, "resources_per_worker": {"CPU": 0.5}}
HARDWARE: dict[str, dict[str, Any]] = {
    "more GPUs than there are": {"workers": {**_GPU, "num_workers": 3}},
    "two workers on one GPU": {"workers": {**_GPU, "num_workers": 2, "resources_per_worker": {"CPU": 0.5, "GPU": 0.5}}},
    "attention without its package": {"workers": _GPU, "model": {"attn_implementation": "flash_attention_3"}},
    "bf16 on a GPU without it": {"workers": _GPU, "training": {"bf16": True}},
    "tf32 on a GPU without it": {"workers": _GPU, "training": {"tf32": True}},
    "fp16 on CPUs": {"workers": {"use_gpu": False}, "training": {"fp16": True}},
    "quantization without its package": {
        "workers": _GPU,
        "model": {"quantization": {"load_in_4bit": True}},
        "lora": {"r": 8},
    },
    "tensor_parallel in a DeepSpeed JSON": {
        "workers": _GPU,
        "deepspeed": {
            "zero_stage": 1,
            "config": {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}},
        },
    },
}
_OLD_GPUS = [{"name": "Tesla V100", "memory": 32 << 30, "bf16": False}] * 2


def main() -> None:
    parser = bench.build_parser(__doc__, steps=1)
    parser.add_argument("--hardware", action="store_true", help="what a job asks of GPUs")
    args = parser.parse_args()
    kinds, goal = (HARDWARE, 5) if args.hardware else (KINDS, 15)
    runs: dict[str, list[float]] = {kind: [] for kind in kinds}
    with bench.work_folder(args) as folder:
        write_wrong_data(folder)
        for _ in range(args.repeat):
            for kind, sections in kinds.items():
                runs[kind].append(measure(args, folder, sections))
                figures.say(f"{kind}: {runs[kind][-1]:.1f} s")
    print(f"\nseconds to exit code 2, medians of {args.repeat}; goal {goal}\n")
    for kind, seconds in runs.items():
        print(f"{kind:<40}{statistics.median(seconds):>8.1f}   {' '.join(f'{value:.1f}' for value in seconds)}")
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))


def write_wrong_data(folder: Path) -> None:
    lines = bench.mrpc().read_text().splitlines()
    (folder / "equal.jsonl").write_text("".join(json.dumps({**json.loads(line), "label": 0}) + "\n" for line in lines))
    (folder / "broken.jsonl").write_text(
        "".join(line[: len(line) // 2 if number % 10 == 0 else None] + "\n" for number, line in enumerate(lines))
    )


def measure(args: argparse.Namespace, folder: Path, sections: dict[str, Any]) -> float:
    job = bench.build_job(args, folder, "refused", bench.mrpc(), COLUMNS, 3, **sections)
    (folder / "job.yaml").write_text(json.dumps(job))
    env = hook_environment(folder / "hooks.json", gpus=_OLD_GPUS) if args.hardware else None
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raytrain_nlp.cli.main", "train", "job.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    if done.returncode != 2:
        sys.exit(f"error: exit code {done.returncode}, not 2: {done.stderr[-500:]}")
    seconds = time.monotonic() - started
    figures.say(done.stderr.strip().splitlines()[-1])
    return seconds


if __name__ == "__main__":
    main()
