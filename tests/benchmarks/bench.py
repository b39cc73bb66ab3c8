"""What the benchmarks share: whole processes under measurement, the two sides of a comparison, and the report.

Not a script. Each benchmark is one file beside this one; its docstring has the command. Nothing here judges a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from process import Child, Finished

PEER = Path(__file__).with_name("peer.py")
MODEL = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# DeepSpeed ZeRO-3 as Hugging Face documents it; "auto" is filled from the arguments. On CPU nothing can overlap, and
# torch's own Adam needs no compiler.
PEER_ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 10**9,
    "wall_clock_breakdown": False,
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
}


def build_parser(doc: str, steps: int | None, repeat: int = 3) -> argparse.ArgumentParser:
    """The flags all benchmarks have; `--steps` only where a default is given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of bert-base-uncased's tokenizer")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help="optimizer updates of a run (default %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=repeat, help="repetitions; medians are reported (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes on either side (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows of a worker's batch (default %(default)s)")
    parser.add_argument(
        "--model-config",
        type=json.loads,
        default=MODEL,
        metavar="JSON",
        help="model config (default: a BERT of 4 layers, hidden 256)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--workdir", type=Path, help="keep all files of all runs here (default: a temporary folder)")
    return parser


@contextlib.contextmanager
def work_folder(args: argparse.Namespace) -> Iterator[Path]:
    """An empty folder for this benchmark's runs."""
    if args.workdir:
        folder = args.workdir.resolve() / f"{Path(sys.argv[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder.mkdir(parents=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="raytrain-nlp-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mrpc() -> Path:
    """The training split of MRPC."""
    if not os.environ.get("RAYTRAIN_NLP_DATA"):
        sys.exit("error: set RAYTRAIN_NLP_DATA to the folder of datasets (it holds mrpc/train.jsonl).")
    return Path(os.environ["RAYTRAIN_NLP_DATA"]).resolve() / "mrpc" / "train.jsonl"


def cadence(steps: int) -> tuple[int, int]:
    """Logging interval and warm-up steps left out of rates: 10 and two fifths of the steps, less in runs of a few
    steps.

    Both sides still load libraries in the first 20 to 30 steps: their tracker, ours and Ray's processes.
    """
    interval = max(1, min(10, steps // 6))
    return interval, max(1, steps * 2 // 5 // interval * interval)


# Our side


def build_job(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    train: Path,
    text_columns: list[str],
    zero_stage: int,
    **sections: Any,
) -> dict[str, Any]:
    """A job of ours that trains `args.steps` steps and saves nothing; the keys of `sections` replace or extend it."""
    job: dict[str, Any] = {
        "name": name,
        "storage_path": str(folder),
        "seed": args.seed,
        "task": {"type": "text-classification", "text_columns": text_columns, "label_column": "label"},
        "model": {"config": args.model_config, "tokenizer": str(args.tokenizer.resolve())},
        "data": {"train": str(train), "max_length": 128},
        "training": {
            "learning_rate": 5e-5, "per_device_train_batch_size": args.batch, "max_steps": args.steps,
            "logging_steps": cadence(args.steps)[0], "logging_first_step": False,
        },
        "deepspeed": {"zero_stage": zero_stage},
        "workers": {"num_workers": args.workers, "resources_per_worker": {"CPU": 1}, "max_failures": 0},
        "checkpoint": {"save_strategy": "no"},
    }  # fmt: skip
    for key, value in sections.items():
        job[key] = {**job.get(key, {}), **value} if isinstance(value, dict) else value
    return job


def start_ours(job: dict[str, Any], *flags: str) -> Child:
    """Our command line on a job, in a Ray of its own. JSON is YAML."""
    file = Path(job["storage_path"]) / f"{job['name']}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return Child([sys.executable, "-m", "raytrain_nlp.cli.main", "train", str(file), "--json", *flags])


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """Complete events of a run so far."""
    with contextlib.suppress(FileNotFoundError), open(Path(run_dir) / "events.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def loss_logs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log events of training: step, time in ms, and their figures."""
    return [
        {"step": event["step"], "time": event["time"], **event["metrics"]}
        for event in events
        if event["kind"] == "log" and "loss" in event["metrics"]
    ]


# The peer's side


def run_peer(
    args: argparse.Namespace,
    folder: Path,
    train: Path,
    text_columns: list[str] | None,
    zero_stage: int,
    script: Path = PEER,
    **flags: Any,
) -> Finished:
    """Plain Hugging Face `Trainer` under torchrun, same arguments as `build_job`; further flags as keywords.

    `average_tokens_across_devices`, on by default, would multiply the loss of a model that ignores
    `num_items_in_batch`, as BERT's classifier does, by the number of processes (transformers 5.23). Without it the loss
    is the true one, and the peer saves a collective a step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classifier = (
        {"model": args.tokenizer.resolve(), "text_columns": text_columns, "max_length": 128} if script == PEER else {}
    )
    values = {
        **classifier,
        "config": json.dumps(args.model_config),
        "train": train,
        "output_dir": folder / "out",
        "seed": args.seed,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "logging_steps": cadence(args.steps)[0],
        "save_strategy": "no",
        "use_cpu": True,
        "average_tokens_across_devices": False,
        **flags,
    }
    if zero_stage:
        values["deepspeed"] = folder / "zero3.json"
        values["deepspeed"].write_text(json.dumps(PEER_ZERO3), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(args.workers),
        "--master-port",
        str(port),
        str(script),
    ]
    for key, value in values.items():
        command += [f"--{key}", *(str(part) for part in (value if isinstance(value, list) else [value]))]
    return Child(command).finish()


# Data


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Generated rows: words of MRPC, lengths log-normal with median 28 words; the first rows are the same for any
    count.
    """
    words = np.array(
        sorted(
            {
                word
                for line in mrpc().read_text(encoding="utf-8").splitlines()
                for word in json.loads(line)["sentence1"].split()
            }
        )
    )
    draw = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            text = " ".join(words[draw.integers(len(words), size=max(int(draw.lognormal(np.log(28), 0.7)), 1))])
            file.write(json.dumps({"text": text, "label": int(draw.integers(2))}, ensure_ascii=False) + "\n")
    return path
