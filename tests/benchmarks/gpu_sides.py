"""The sides of the GPU benchmark: our command line, plain `Trainer` under torchrun, and what each of them showed. Not a
script.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench
from gpu_cases import CAUSAL, CLASSIFIER, TRANSLATION, Case, build_job, peer_flags
from process import Child

PEER = Path(__file__).with_name("peer_tasks.py")
PATIENCE_S = 10
AUTO = {
    CAUSAL: "AutoModelForCausalLM", CLASSIFIER: "AutoModelForSequenceClassification",
    TRANSLATION: "AutoModelForSeq2SeqLM",
}  # fmt: skip
CLI = [sys.executable, "-m", "raytrain_nlp.cli.main"]


def measure_ours(case: Case, folder: Path, timeout_s: float) -> dict[str, Any]:
    """A `train` of the case's job, and what its events say."""
    # a storage path of its own: the case before has not tokenized for this one
    finished = bench.start_ours(build_job(case, folder / case.name)).finish(timeout_s, PATIENCE_S)
    events = bench.read_events(finished.output["run_dir"])
    first = next(event["time"] for event in events if event.get("phase") == "first step")
    scores = [event["metrics"] for event in events if event["kind"] == "log" and "eval_runtime" in event["metrics"]]
    peak = next((event["peak_memory"] for event in reversed(events) if event["kind"] == "end"), None)
    return {
        "run_dir": finished.output["run_dir"],
        "model_dir": finished.output["model_dir"],
        "first_step_s": first / 1000 - finished.started,
        "memory": max(peak) if peak else None,
        "evaluation_s": scores[-1]["eval_runtime"] if scores else None,
        "phases": {event["phase"]: event["time"] / 1000 - finished.started for event in events if "phase" in event},
        "notices": [event["text"] for event in events if event["kind"] == "notice"],
        "logs": (logs := bench.loss_logs(events)),
        **_rates(case, logs, finished.seconds),
    }


def measure_peer(case: Case, folder: Path, batches: Path, timeout_s: float) -> dict[str, Any]:
    """Plain `Trainer` under torchrun with the plan's batches; DeepSpeed's file is the one that Hugging Face documents.
    ZeRO 0 is DDP.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = peer_flags(case, folder / "out", batches)
    stage = 3 if case.zero_stage is None else case.zero_stage
    if stage:
        flags["deepspeed"] = folder / "deepspeed.json"
        flags["deepspeed"].write_text(json.dumps(_zero(stage, case.gpu)), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", port, PEER]
    words = [
        word for key, value in flags.items() for word in (f"--{key}", *(value if isinstance(value, list) else [value]))
    ]
    finished = Child([str(word) for word in [*launch, *words]]).finish(timeout_s, PATIENCE_S)
    found = finished.output
    return {
        "first_step_s": found["marks"]["first step"] / 1000 - finished.started,
        "memory": found.get("reserved"),
        "evaluation_s": found["metrics"].get("eval_runtime"),
        "logs": found["logs"],
        **_rates(case, found["logs"], finished.seconds),
    }


def _zero(stage: int, gpu: bool) -> dict[str, Any]:
    zero = {key: value for key, value in bench.PEER_ZERO3["zero_optimization"].items() if stage == 3 or "3" not in key}
    return {**bench.PEER_ZERO3, "zero_optimization": {**zero, "stage": stage, "overlap_comm": gpu}}


def _rates(case: Case, logs: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Seconds of a step: the median over the intervals between two logs, of which the first begins after the warm-up
    of `logging_steps` steps. One formula for both sides.
    """
    gaps = [(b["time"] - a["time"]) / 1000 / (b["step"] - a["step"]) for a, b in zip(logs, logs[1:])]
    step = statistics.median(gaps) if gaps else None
    return {
        "step_s": step,
        "step_s_of_each_interval": gaps,
        "rows_per_second": case.global_batch / step if step else None,
        "seconds": seconds,
        "losses": [log["loss"] for log in logs],
    }


def plan_memory(case: Case, folder: Path, timeout_s: float) -> int | None:
    """Bytes that `check` says a worker needs; of our side's own settings."""
    job = folder / "ours" / case.name / f"{case.name}.yaml"
    done = subprocess.run(
        [*CLI, "check", str(job), "--json"], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return int(json.loads(lines[-1])["memory"]["total"]) if lines and not done.returncode else None


def write_batches(case: Case, file: Path) -> dict[str, float]:
    """The plan's global batches for the peer, whose own code makes and counts the rows. Returns their mean tokens, and
    mean target tokens, of a step.
    """
    import numpy as np
    from peer_tasks import PeerArguments, encode, load_tokenizer, read_rows

    from raytrain_nlp.data.plan import Plan, PlanSpec

    columns = ["en", "de"] if case.kind == TRANSLATION else ["text"]
    peer = PeerArguments(
        kind=case.kind,
        tokenizer=case.sources["tokenizer"],
        columns=columns,
        max_length=case.length,
        max_target_length=case.length,
    )
    tokenizer, texts = load_tokenizer(peer), read_rows(case.sources["train"])
    rows = encode(peer, texts, tokenizer)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    count = len(rows)
    if case.kind == CAUSAL:
        count = -(-sum(map(len, tokenizer([row["text"] for row in texts])["input_ids"])) // case.length)
    plan = Plan(PlanSpec(count, 42, case.strategy, case.global_batch), lengths)
    # the last, short block of a stream, which the examples drop and we train on, is the one before it for the peer
    batches = [np.minimum(plan.at(step)[2], len(rows) - 1).tolist() for step in range(case.steps)]
    file.write_text(json.dumps(batches), encoding="utf-8")
    used = [row for batch in batches for row in batch]
    targets = sum(len(rows[row]["labels"]) for row in used) / case.steps if case.kind == TRANSLATION else 0.0
    return {"tokens": float(lengths[used].sum()) / case.steps, "targets": targets}


def step_flops(case: Case, tokens: float, targets: float) -> float | None:
    """FLOPs of a step of the case, by the formula of `raytrain_nlp.modeling.flops`, for both sides."""
    import torch
    import transformers

    from raytrain_nlp.modeling.flops import count_flops

    values = {"vocab_size": 8192, **case.model}
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        model = getattr(transformers, AUTO[case.kind]).from_config(config)
        if case.lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **case.lora))
    flops = count_flops(model)
    return flops.of_step(case.global_batch, tokens, targets) if flops else None
