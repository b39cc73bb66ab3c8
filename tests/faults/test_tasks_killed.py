"""Each task: a run that was killed ends bit for bit as one that was not, and one worker sees the batches of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY, checkpoint_tensors, events, losses, recorded_rows, tiny_job, write_rows

ROWS, STEPS, SAVE, KILLED = 100, 12, 5, 9
"""Seven steps an epoch: the killed run repeats the end of the first one and the start of the second."""
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "attention_dropout": 0.1,
}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.1}
BART = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "dropout": 0.1,
}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal-lm": ({"packing": "best_fit"}, LLAMA),
    "masked-lm": ({"line_by_line": True}, {**TINY, "hidden_dropout_prob": 0.1}),
    "summarization": ({"summary_column": "label", "max_target_length": 8}, T5),
    "translation": ({"source_lang": "text", "target_lang": "label", "max_target_length": 8}, BART),
}


def job_of(folder: Path, name: str, kind: str, workers: int = 2) -> dict[str, Any]:
    task, config = TASKS[kind]
    return tiny_job(
        folder,
        name,
        model={"config": config},
        deepspeed={"zero_stage": 3},
        checkpoint={"save_steps": SAVE},
        training={"max_steps": STEPS, "per_device_train_batch_size": 16 // workers},
        workers={"num_workers": workers, "max_failures": 1},
    ) | {"task": {"type": kind, **task}}


def batches(folder: Path) -> dict[int, set[tuple[int, int]]]:
    """Of each step the rows and what stood in them, whichever rank had them; of a repeated step both times."""
    found: dict[int, set[tuple[int, int]]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(zip(entry["rows"], entry["content"], strict=True))
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_killed_run_and_single_worker(shared_ray: Any, train_warm: Any, tmp_path: Path, kind: str) -> None:
    import raytrain_nlp

    write_rows(tmp_path / "words.jsonl", ROWS)
    words = {0: "no", 1: "yes, oh yes"}
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({**row, "label": words[row["label"]]}) + "\n" for row in rows)
    )
    runs, seen = {}, {}
    for name, workers in (("whole", 2), ("killed", 2), ("single", 1)):
        (tmp_path / name).mkdir()
        kill = (
            {"kill": {"point": "mid_step", "rank": 1, "step": KILLED, "marker": str(tmp_path / "marker")}}
            if name == "killed"
            else {}
        )
        shared_ray(record_rows=str(tmp_path / name), **kill)
        train = raytrain_nlp.train if name == "killed" else train_warm
        runs[name] = Path(train(job_of(tmp_path, name, kind, workers)).run_dir)
        seen[name] = batches(tmp_path / name)

    assert [event["step"] for event in events(runs["killed"]) if event["kind"] == "resume"] == [SAVE]
    killed, whole = (
        checkpoint_tensors(runs[name] / "checkpoints" / f"checkpoint-{STEPS - STEPS % SAVE}")
        for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys() and len(whole) > 10
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    assert len({(runs[name] / "model" / "model.safetensors").read_bytes() for name in ("killed", "whole")}) == 1
    assert losses(runs["killed"]) == losses(runs["whole"]) and len(losses(runs["whole"])) == STEPS

    assert seen["single"] == seen["whole"] == seen["killed"] and sorted(seen["whole"]) == list(range(STEPS))
    sizes = {len(batch) for batch in seen["whole"].values()}
    assert max(sizes) == 16 and len(losses(runs["single"])) == STEPS
