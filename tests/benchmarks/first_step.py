"""Seconds from start to the first step of a causal language model, for text of n MB and of 10 n MB: does it depend on
the size of the data?

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/first_step.py --tokenizer TOKENIZERS/gpt2 --json first_step.json

Ours prepares in windows (`data.streaming`); the peer tokenizes everything first, as transformers' run_clm does, on n MB
only (`--peer-large` for 10 n MB too). The text is WikiText-2's lines in random order. Every run starts without cached
tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import bench
import figures

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}


def main() -> None:
    parser = bench.build_parser(__doc__, steps=2, repeat=1)
    parser.set_defaults(model_config=MODEL)
    parser.add_argument("--megabytes", type=int, default=100, help="n (default %(default)s)")
    parser.add_argument("--zero-stage", type=int, default=3, choices=[0, 3])
    parser.add_argument("--peer-large", action="store_true", help="the peer on 10 n MB, too")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        texts = {size: write_text(folder / f"{size}.jsonl", size) for size in (args.megabytes, 10 * args.megabytes)}
        for repetition in range(args.repeat):
            for side, size in [
                ("ours", args.megabytes),
                ("peer", args.megabytes),
                ("ours", 10 * args.megabytes),
                ("peer", 10 * args.megabytes),
            ]:
                if side == "ours" or size == args.megabytes or args.peer_large:
                    place = folder / f"{side}-{size}-{repetition}"
                    seconds = (
                        measure_ours(args, place, texts[size])
                        if side == "ours"
                        else measure_peer(args, place, texts[size])
                    )
                    runs.append({"side": side, "megabytes": size, "repetition": repetition, "seconds": seconds})
                    figures.say(
                        f"repetition {repetition + 1}/{args.repeat}, {side}, {size} MB: first step after {seconds:.1f} "
                        f"s"
                    )
    report(args, runs)


def write_text(path: Path, megabytes: int) -> Path:
    """Rows {"text": ...} of WikiText-2's lines, each with a number of its own."""
    source = (
        Path(os.environ["RAYTRAIN_NLP_DATA"]) / "wikitext2" / "test.jsonl"
        if os.environ.get("RAYTRAIN_NLP_DATA")
        else None
    )
    if source is None:
        sys.exit("error: set RAYTRAIN_NLP_DATA to the folder of datasets (it holds wikitext2/test.jsonl).")
    lines = [
        text for line in source.read_text(encoding="utf-8").splitlines() if (text := json.loads(line)["text"].strip())
    ]
    draw, size, number = random.Random(0), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes << 20:
            number += 1
            size += file.write(json.dumps({"text": f"{number} {draw.choice(lines)}"}) + "\n")
    return path


def measure_ours(args: argparse.Namespace, folder: Path, text: Path) -> float:
    job = bench.build_job(
        args, folder, "first-step", text, [], args.zero_stage, task={"type": "causal-lm"}, data={"streaming": True}
    )
    job["task"] = {"type": "causal-lm"}
    finished = bench.start_ours(job).finish()
    events = bench.read_events(finished.output["run_dir"])
    return next(event["time"] for event in events if event.get("phase") == "first step") / 1000 - finished.started


def measure_peer(args: argparse.Namespace, folder: Path, text: Path) -> float:
    values = {"tokenizer": args.tokenizer.resolve(), "block_size": 128, "cache_dir": folder / "cache"}
    finished = bench.run_peer(
        args, folder, text, None, args.zero_stage, script=Path(__file__).with_name("peer_clm.py"), **values
    )
    return finished.output["marks"]["first step"] / 1000 - finished.started


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    def of(side: str, size: int) -> float | None:
        return figures.median([run["seconds"] for run in runs if (run["side"], run["megabytes"]) == (side, size)])

    small, large = args.megabytes, 10 * args.megabytes
    summary = {f"{side} {size} MB": of(side, size) for size in (small, large) for side in ("ours", "peer")}
    summary |= {
        "ours/peer": figures.ratio(of("ours", small), of("peer", small)),
        "ours, ten times the text": figures.ratio(of("ours", large), of("ours", small)),
    }
    title = f"seconds to the first step, ZeRO {args.zero_stage}, {args.workers} workers, medians of {args.repeat}"
    figures.print_table(title, ["", ""], [[name, value] for name, value in summary.items()])
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
