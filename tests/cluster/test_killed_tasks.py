"""Tasks whose rows are more than a text, and mixtures: a run that was killed ends bit for bit as one that was not, and
one and three workers see the batches of two. The other tasks: tests/faults/test_tasks_killed.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY, checkpoint_tensors, events, losses, recorded_rows, tiny_job

STEPS, SAVE, KILLED = 12, 5, 9
DROPOUT = {**TINY, "hidden_dropout_prob": 0.1}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.1}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
XLNET = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64, "dropout": 0.1}
WORDS = "eins zwei drei vier fünf sechs sieben acht neun zehn".split()
QUESTION = {"doc_stride": 8, "max_answer_length": 3}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "question-answering": ({"type": "question-answering", **QUESTION}, DROPOUT),
    "seq2seq-question-answering": ({"type": "seq2seq-question-answering", "max_target_length": 8}, T5),
    "multiple-choice": (
        {"type": "multiple-choice", "context_column": "question", "ending_columns": ["a", "b", "c"]},
        DROPOUT,
    ),
    "permutation-lm": ({"type": "permutation-lm", "text_column": "context", "block_size": 32}, XLNET),
    "infilling": ({"type": "causal-lm", "text_column": "context", "block_size": 32, "fim_rate": 0.7}, GPT2),
    "mixture": ({"type": "causal-lm", "text_column": "context", "packing": "best_fit", "block_size": 32}, GPT2),
}


def write_questions(path: Path, count: int, seed: int) -> None:
    """Rows that each of the tasks can read."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = draw.sample(WORDS, 10) + draw.choices(["und", "oder"], k=draw.randint(5, 30))
            start = sum(len(word) + 1 for word in words[:4])
            row: dict[str, Any] = {"question": words[3], "context": " ".join(words)}
            row["answers"] = {"text": [words[4]], "answer_start": [start]}
            file.write(json.dumps({**row, "a": words[4], "b": words[5], "c": words[6], "label": 0}) + "\n")


def job_of(folder: Path, name: str, kind: str, workers: int) -> dict[str, Any]:
    task, config = TASKS[kind]
    sources = [{"path": str(folder / f"{name}.jsonl"), "weight": weight} for name, weight in (("train", 3), ("few", 1))]
    data = {"train": sources} if kind == "mixture" else {}
    job = tiny_job(
        folder,
        name,
        model={"config": config},
        data={"global_batch_size": 16, "max_length": 32, **data},
        deepspeed={"zero_stage": 3},
        checkpoint={"save_steps": SAVE},
        training={"max_steps": STEPS},
        workers={"num_workers": workers, "max_failures": 1},
    )
    job["training"].pop("per_device_train_batch_size", None)
    return {**job, "task": task}


def batches(folder: Path) -> dict[int, set[tuple[int, int]]]:
    """Of each step the rows and what stood in them, whichever rank had them; of a repeated step both times."""
    found: dict[int, set[tuple[int, int]]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(zip(entry["rows"], entry["content"], strict=True))
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", TASKS)
def test_killed_run_and_one_and_three_workers(shared_ray: Any, tmp_path: Path, kind: str) -> None:
    import raytrain_nlp

    write_questions(tmp_path / "train.jsonl", 100, 1)
    write_questions(tmp_path / "few.jsonl", 20, 2)
    runs, seen = {}, {}
    for name, workers in (("whole", 2), ("killed", 2), ("single", 1), ("three", 3)):
        rows = tmp_path / f"rows-{name}"
        rows.mkdir()
        marker = str(tmp_path / "marker")
        kill = {"kill": {"point": "mid_step", "rank": 1, "step": KILLED, "marker": marker}} if name == "killed" else {}
        shared_ray(record_rows=str(rows), **kill)
        runs[name] = Path(raytrain_nlp.train(job_of(tmp_path, name, kind, workers)).run_dir)
        seen[name] = batches(rows)
    assert [event["step"] for event in events(runs["killed"]) if event["kind"] == "resume"] == [SAVE]
    killed, whole = (
        checkpoint_tensors(runs[name] / "checkpoints" / f"checkpoint-{STEPS - STEPS % SAVE}")
        for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys() and len(whole) > 10
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    assert losses(runs["killed"]) == losses(runs["whole"]) and len(losses(runs["whole"])) == STEPS
    assert seen["single"] == seen["whole"] == seen["killed"] == seen["three"]
    assert sorted(seen["whole"]) == list(range(STEPS))
