"""Every task on real data beside plain Hugging Face `Trainer`: the figures of both models by one function, and rows a
second.

    RAYTRAIN_NLP_DATA=DATA python tests/benchmarks/tasks.py --tokenizers TOKENIZERS --json tasks.json \
        --minilm MODELS/minilm --bart-g2p MODELS/bart-g2p-us --smollm2 MODELS/smollm2

DATA holds wikitext2, scitldr_a, multi30k_en_de, stsb and g2p_en_us as JSON Lines; TOKENIZERS the folders gpt2,
bert-base-uncased and t5-small. A task whose model is not named is left out, and said. Both sides train the same model
with the same hyper-parameters, steps, processes and threads (peer_tasks.py under torchrun), with `--batches identical`
on the same global batches, with `--batches own` each on its own: ours grouped by length, the peer's at random, as the
example scripts do. On identical batches no model has dropout, so that the losses of both sides must agree (but
masked-lm's: each side draws its own masks). The rate leaves out the first two fifths of the steps and is computed from
the times of the logs, by one formula for both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import figures
from process import Child

PEER = Path(__file__).with_name("peer_tasks.py")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    **NO_DROPOUT,
}
T5 = {"model_type": "t5", "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@dataclass(frozen=True)
class Case:
    """One task on one dataset. `model` is the flag that names a pretrained one, or a config."""

    kind: str
    task: dict[str, Any]
    columns: list[str]
    train: str
    validation: str
    model: str | dict[str, Any]
    metrics: list[str]
    steps: int
    batch: int
    learning_rate: float
    max_length: int
    tokenizer: str | None = None
    max_target_length: int = 64
    validation_rows: int = 256
    lora: dict[str, Any] | None = None


STSB = {"type": "text-classification", "glue": "stsb"}
CASES = {
    "wikitext2 causal-lm": Case(
        "causal-lm",
        {"type": "causal-lm"},
        ["text"],
        "wikitext2/test.jsonl",
        "wikitext2/validation.jsonl",
        GPT2,
        ["loss", "perplexity"],
        100,
        8,
        1e-3,
        64,
        "gpt2",
        validation_rows=1000,
    ),
    "wikitext2 masked-lm": Case(
        "masked-lm",
        {"type": "masked-lm"},
        ["text"],
        "wikitext2/test.jsonl",
        "wikitext2/validation.jsonl",
        BERT,
        ["loss", "perplexity"],
        100,
        8,
        1e-3,
        64,
        "bert-base-uncased",
        validation_rows=1000,
    ),
    "SciTLDR summarization": Case(
        "summarization",
        {"type": "summarization", "text_column": "document", "summary_column": "summary", "max_target_length": 48},
        ["document", "summary"],
        "scitldr_a/train.jsonl",
        "scitldr_a/validation.jsonl",
        T5,
        ["loss", "rouge1", "rougeL"],
        80,
        8,
        1e-3,
        192,
        "t5-small",
        48,
        64,
    ),
    "Multi30k translation": Case(
        "translation",
        {"type": "translation", "source_lang": "en", "target_lang": "de", "max_target_length": 48},
        ["en", "de"],
        "multi30k_en_de/train.jsonl",
        "multi30k_en_de/validation.jsonl",
        T5,
        ["loss", "bleu", "chrf"],
        150,
        16,
        2e-3,
        48,
        "t5-small",
        48,
        64,
    ),
    "STS-B regression": Case(
        "regression",
        STSB,
        ["sentence1", "sentence2"],
        "stsb/train.jsonl",
        "stsb/validation.jsonl",
        "minilm",
        ["pearson", "spearman"],
        100,
        8,
        1e-4,
        128,
        validation_rows=512,
    ),
    "g2p translation": Case(
        "translation",
        {"type": "translation", "source_lang": "en", "target_lang": "ipa", "max_target_length": 48},
        ["en", "ipa"],
        "g2p_en_us/train.jsonl",
        "g2p_en_us/validation.jsonl",
        "bart_g2p",
        ["loss", "exact_match", "chrf"],
        150,
        16,
        3e-4,
        48,
        None,
        48,
        500,
    ),
    "SciTLDR completion, LoRA": Case(
        "completion",
        {"type": "causal-lm", "prompt_column": "prompt", "completion_column": "completion"},
        ["prompt", "completion"],
        "completion/train.jsonl",
        "completion/validation.jsonl",
        "smollm2",
        ["loss", "perplexity"],
        24,
        2,
        5e-4,
        160,
        validation_rows=64,
        lora=LORA,
    ),
}


def main() -> None:
    args = parse()
    runs: list[dict[str, Any]] = []
    with bench.work_folder(args) as folder:
        for name in args.cases or CASES:
            case = CASES[name]
            if isinstance(case.model, str) and not getattr(args, case.model):
                figures.say(f"{name}: left out, --{case.model.replace('_', '-')} is not given")
                continue
            for number, seed in enumerate(args.seeds):
                for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                    run = measure(args, case, name, folder / f"{case.kind}-{len(runs)}", side, seed)
                    runs.append(run)
                    shown = ", ".join(f"{key} {figures.shown(value)}" for key, value in run["metrics"].items())
                    figures.say(
                        f"{name}, seed {seed}, {side}: {shown}, {figures.shown(run['rows_per_second'])} rows/s "
                        f"({run['seconds']:.0f} s)"
                    )
    report(args, runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", required=True, type=Path, help="folder of gpt2, bert-base-uncased and t5-small")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--bart-g2p", type=Path, help="folder of the BART that spells words in phonemes")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), metavar="NAME", help=f"default: all of {', '.join(CASES)}"
    )
    parser.add_argument("--batches", choices=["identical", "own"], default="identical", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="a repetition each (default %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer updates of a run (default: each task's own)")
    parser.add_argument("--zero-stage", type=int, choices=[0, 3], default=0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="worker processes on either side (default: %(default)s)")
    parser.add_argument("--no-scores", action="store_true", help="rates only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--workdir", type=Path, help="keep all files of all runs here (default: a temporary folder)")
    args = parser.parse_args()
    if not os.environ.get("RAYTRAIN_NLP_DATA"):
        sys.exit("error: set RAYTRAIN_NLP_DATA to the folder of datasets.")
    return args


def measure(args: argparse.Namespace, case: Case, name: str, folder: Path, side: str, seed: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    steps = args.steps or case.steps
    interval, warm = bench.cadence(steps)
    training = {
        "learning_rate": case.learning_rate,
        "per_device_train_batch_size": case.batch,
        "max_steps": steps,
        "logging_steps": interval,
        "save_strategy": "no",
        "logging_first_step": False,
    }
    finished, model = (run_ours if side == "ours" else run_peer)(args, case, folder, seed, training)
    logs = bench.loss_logs(bench.read_events(finished.output["run_dir"])) if side == "ours" else finished.output["logs"]
    return {
        "case": name,
        "side": side,
        "seed": seed,
        "metrics": {} if args.no_scores else score(case, model, folder),
        "seconds": finished.seconds,
        "rows_per_second": figures.steady_rate(logs, case.batch * args.workers, warm),
        "load_before": finished.load,
        "losses": {str(log["step"]): log["loss"] for log in logs},
    }


def run_ours(
    args: argparse.Namespace, case: Case, folder: Path, seed: int, training: dict[str, Any]
) -> tuple[Any, Path]:
    if isinstance(case.model, str):
        model: dict[str, Any] = {"name_or_path": str(pretrained(args, case, folder))}
    else:
        model = {"config": case.model, "tokenizer": str((args.tokenizers / case.tokenizer).resolve())}
    job = {
        "name": "run", "storage_path": str(folder), "seed": seed, "task": case.task, "model": model,
        "data": {"train": str(data(case, "train", folder)), "max_length": case.max_length},
        "training": training, "deepspeed": {"zero_stage": args.zero_stage},
        "workers": {"num_workers": args.workers, "resources_per_worker": {"CPU": 1}, "max_failures": 0},
        **({"lora": {**case.lora, "merge_and_unload": True}} if case.lora else {}),
    }  # fmt: skip
    finished = bench.start_ours(job).finish()
    return finished, Path(finished.output["model_dir"])


def run_peer(
    args: argparse.Namespace, case: Case, folder: Path, seed: int, training: dict[str, Any]
) -> tuple[Any, Path]:
    """`average_tokens_across_devices`, on by default, is right for decoders; it would multiply the loss of models that
    ignore `num_items_in_batch` (BERT, T5, BART) by the number of processes (transformers 5.23)."""
    values = {
        **peer_values(case),
        "train": data(case, "train", folder),
        "output_dir": folder / "model",
        "seed": seed,
        "use_cpu": True,
        "average_tokens_across_devices": case.kind in ("causal-lm", "completion"),
        **training,
    }
    if isinstance(case.model, str):
        values["model"] = pretrained(args, case, folder)
    else:
        values |= {"config": json.dumps(case.model), "tokenizer": (args.tokenizers / case.tokenizer).resolve()}
    if case.lora:
        values["lora"] = json.dumps(case.lora)
    if args.batches == "identical":
        values["batches"] = write_batches(args, case, folder, seed, training["max_steps"], values)
    if args.zero_stage:
        values["deepspeed"] = folder / "zero3.json"
        values["deepspeed"].write_text(json.dumps(bench.PEER_ZERO3), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(args.workers),
        "--master-port",
        str(port),
        str(PEER),
    ]
    return Child([*launch, *flags(values)]).finish(), folder / "model"


def pretrained(args: argparse.Namespace, case: Case, folder: Path) -> Path:
    """The folder of a pretrained model; on identical batches one of the same files with dropout set to 0."""
    source = getattr(args, case.model).resolve()
    if args.batches == "own":
        return source
    copy = folder / "start"
    copy.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "config.json":
            (copy / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = {key: 0.0 if "dropout" in key and isinstance(value, float) else value for key, value in config.items()}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def score(case: Case, model: Path, folder: Path) -> dict[str, float]:
    """Figures of a trained model, ours or the peer's, by the peer's code in a single process."""
    values = {
        **peer_values(case),
        "model": model,
        "validation": data(case, "validation", folder),
        "max_validation_rows": case.validation_rows,
        "score": 1,
        "output_dir": folder / "score",
        "per_device_eval_batch_size": 16,
        "use_cpu": True,
    }
    metrics = Child([sys.executable, str(PEER), *flags(values)]).finish().output["metrics"]
    return {name: metrics[name] for name in case.metrics}


def peer_values(case: Case) -> dict[str, Any]:
    return {
        "kind": case.kind,
        "columns": case.columns,
        "max_length": case.max_length,
        "max_target_length": case.max_target_length,
    }


def flags(values: dict[str, Any]) -> list[str]:
    return [
        word
        for key, value in values.items()
        for word in (f"--{key}", *(str(part) for part in (value if isinstance(value, list) else [value])))
    ]


def data(case: Case, split: str, folder: Path) -> Path:
    """The file of a split; prompts and completions are made of abstracts and their summaries."""
    path = getattr(case, split)
    source = Path(os.environ["RAYTRAIN_NLP_DATA"]).resolve() / path.replace("completion/", "scitldr_a/")
    if case.kind != "completion":
        return source
    file = folder / f"{split}.jsonl"
    with source.open(encoding="utf-8") as lines, file.open("w", encoding="utf-8") as out:
        for row in map(json.loads, lines):
            prompt = " ".join(row["document"].split()[:70]) + "\n\nTL;DR:"
            out.write(json.dumps({"prompt": prompt, "completion": " " + row["summary"]}, ensure_ascii=False) + "\n")
    return file


def write_batches(
    args: argparse.Namespace, case: Case, folder: Path, seed: int, steps: int, values: dict[str, Any]
) -> Path:
    """The plan's global batches for the peer; its blocks and lengths are made by the peer's own code."""
    import numpy as np
    from peer_tasks import PeerArguments, encode, load_tokenizer, read_rows

    from raytrain_nlp.data.plan import Plan, PlanSpec

    peer = PeerArguments(
        **{key: values[key] for key in ("kind", "columns", "max_length", "max_target_length")},
        model=str(values.get("model", "")),
    )
    peer.tokenizer = str(values["tokenizer"]) if "tokenizer" in values else None
    tokenizer, rows = load_tokenizer(peer), read_rows(str(values["train"]))
    lengths = [len(row["input_ids"]) for row in encode(peer, rows, tokenizer)]
    count, strategy = len(lengths), "group_by_length"
    if case.kind in ("causal-lm", "masked-lm"):
        tokens = sum(map(len, tokenizer([row[case.columns[0]] for row in rows])["input_ids"]))
        count, strategy = -(-tokens // case.max_length), "random"
    plan = Plan(PlanSpec(count, seed, strategy, case.batch * args.workers), np.array(lengths))
    # the last, short block of a stream, which the examples drop and we train on, is the one before it for the peer
    batches = [np.minimum(plan.at(step)[2], len(lengths) - 1).tolist() for step in range(steps)]
    file = folder / "batches.json"
    file.write_text(json.dumps(batches), encoding="utf-8")
    return file


def report(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    table, summary = [], {}
    for name in dict.fromkeys(run["case"] for run in runs):
        of = {side: [run for run in runs if run["case"] == name and run["side"] == side] for side in ("ours", "peer")}
        rates = {side: figures.median([run["rows_per_second"] for run in found]) for side, found in of.items()}
        scores = {
            key: {side: [run["metrics"][key] for run in found] for side, found in of.items()}
            for key in of["ours"][0]["metrics"]
        }
        apart = max(abs(of["ours"][0]["losses"][step] - loss) for step, loss in of["peer"][0]["losses"].items())
        summary[name] = {
            "rows_per_second": rates,
            "ratio": figures.ratio(rates["ours"], rates["peer"]),
            "metrics": scores,
            "largest_loss_difference": apart,
        }
        shown = "; ".join(
            f"{key} {' '.join(map(figures.shown, found['ours']))} / {' '.join(map(figures.shown, found['peer']))}"
            for key, found in scores.items()
        )
        table.append([name, rates["ours"], rates["peer"], summary[name]["ratio"], f"{apart:.1e}", shown])
    header = ["", "ours rows/s", "peer rows/s", "ours/peer", "loss difference", "figures (ours / peer)"]
    figures.print_table(
        f"{args.workers} workers, ZeRO {args.zero_stage}, {args.batches} batches, seeds {args.seeds}", header, table
    )
    figures.write_report(args, summary, runs)


if __name__ == "__main__":
    main()
