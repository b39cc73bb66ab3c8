"""A step that is bound by Python: what the feed costs there.

    python tests/benchmarks/python_bound.py --tokenizer TOKENIZERS/gpt2 --json python_bound.json

A Llama of 60 tiny layers under ZeRO-3, one worker, one row a step. Runs with our feed alternate with runs that take
all batches out of it at the end of the warm-up, after which nothing but the trainer uses the interpreter. Medians of
the intervals between logs, over all repetitions.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

import bench
import figures
from gpu_cases import CAUSAL, LLAMA_TINY, write_sources

CALLBACK = '''
from transformers import TrainerCallback


class Advance(TrainerCallback):
    """Takes the micro-batches that are left out of the feed, before step {step}."""

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        if state.global_step == {step}:
            feed = train_dataloader.dataset
            feed._batches = iter(list(feed._batches))
'''


def main() -> None:
    parser = bench.build_parser(__doc__, steps=40)
    parser.add_argument("--layers", type=int, default=60)
    args = parser.parse_args()
    interval, warm = bench.cadence(args.steps)
    found: dict[str, list[float]] = {"feed": [], "in advance": []}
    with bench.work_folder(args) as folder:
        train = write_sources(folder / "texts", True, args.tokenizer)[CAUSAL]["train"]
        (folder / "advance.py").write_text(CALLBACK.format(step=warm), encoding="utf-8")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        for repetition in range(args.repeat):
            for side in list(found) if repetition % 2 == 0 else list(found)[::-1]:
                times = measure(args, folder, f"{side.replace(' ', '-')}-{repetition}", train, side == "in advance")
                found[side] += times
                figures.say(
                    f"repetition {repetition + 1}/{args.repeat}, {side}: {statistics.median(times):.4f} s a step"
                )
    medians = {side: statistics.median(times) for side, times in found.items()}
    figures.print_table("s a step", ["batches", "median", "least", "most"],
                        [[side, f"{medians[side]:.4f}", f"{min(times):.4f}", f"{max(times):.4f}"]
                         for side, times in found.items()])  # fmt: skip
    print(f"\nfeed / in advance: {medians['feed'] / medians['in advance']:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"interval": interval, "times": found, "medians": medians}, indent=1))


def measure(args, folder: Path, name: str, train: str, advance: bool) -> list[float]:
    """Seconds of a step, of each interval between two logs after the warm-up."""
    job = bench.build_job(
        args, folder, name, Path(train), [], 3,
        task={"type": CAUSAL, "text_column": "text", "block_size": 64},
        model={"config": {**LLAMA_TINY, "num_hidden_layers": args.layers}, "tokenizer": str(args.tokenizer.resolve())},
    )  # fmt: skip
    job["task"] = {"type": CAUSAL, "text_column": "text", "block_size": 64}
    job["data"] = {"train": train}
    job["training"]["per_device_train_batch_size"] = 1
    job["workers"]["num_workers"] = 1
    if advance:
        job["trainer"] = {"callbacks": ["advance:Advance"]}
    finished = bench.start_ours(job).finish()
    _, warm = bench.cadence(args.steps)
    logs = [log for log in bench.loss_logs(bench.read_events(finished.output["run_dir"])) if log["step"] >= warm]
    return [(b["time"] - a["time"]) / 1000 / (b["step"] - a["step"]) for a, b in zip(logs, logs[1:])]


if __name__ == "__main__":
    sys.exit(main())
