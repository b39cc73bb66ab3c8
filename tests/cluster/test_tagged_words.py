"""Token classification: losses equal to plain `Trainer` under ZeRO 0, a killed run and other numbers of workers, and
what is predicted. The fast part: tests/integration/test_tasks.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import checkpoint_tensors, events, losses, recorded_rows, tiny_job

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import test_tasks

STEPS, SAVE, KILLED = 12, 5, 9


def test_losses_without_zero(shared_ray: Any, tmp_path: Path) -> None:
    test_tasks.test_token_classification(shared_ray, tmp_path, 0)


def batches(folder: Path) -> dict[int, set[tuple[int, int]]]:
    found: dict[int, set[tuple[int, int]]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(zip(entry["rows"], entry["content"], strict=True))
    return found


def test_killed_run_and_one_and_three_workers(shared_ray: Any, tmp_path: Path) -> None:
    import raytrain_nlp

    test_tasks.write_tagged(tmp_path / "train.jsonl", 100, 1)
    runs, seen = {}, {}
    for name, workers in (("whole", 2), ("killed", 2), ("single", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        marker = str(tmp_path / "marker")
        kill = {"kill": {"point": "mid_step", "rank": 1, "step": KILLED, "marker": marker}} if name == "killed" else {}
        shared_ray(record_rows=str(tmp_path / name), **kill)
        job = tiny_job(
            tmp_path,
            name,
            model={"config": {**test_tasks.BERT, "hidden_dropout_prob": 0.1}},
            data={"global_batch_size": 16},
            deepspeed={"zero_stage": 3},
            checkpoint={"save_steps": SAVE},
            training={"max_steps": STEPS},
            workers={"num_workers": workers, "max_failures": 1},
        )
        job["training"].pop("per_device_train_batch_size", None)
        result = raytrain_nlp.train({**job, "task": {"type": "token-classification"}})
        runs[name], seen[name] = Path(result.run_dir), batches(tmp_path / name)

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


def test_predictions_are_those_of_the_pipeline(shared_ray: Any, tmp_path: Path) -> None:
    """Of rows with words the tags, of raw text the spans of the words it is divided into."""
    import transformers

    import raytrain_nlp

    rows = test_tasks.write_tagged(tmp_path / "train.jsonl", 200, 1)
    job = tiny_job(tmp_path, "run", data={"max_length": 24}, training={"max_steps": 60, "save_strategy": "no"})
    result = raytrain_nlp.train({**job, "task": {"type": "token-classification"}})
    words = [row["tokens"] for row in rows[:30]]
    lines = [{"tokens": words[0] * 9}, *({"tokens": sentence} for sentence in words[1:]), {"text": "eins, zwei."}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raytrain_nlp.predict(result.run_dir, str(tmp_path / "new.jsonl"), str(tmp_path / "out.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(found) == len(lines)
    pipe = transformers.pipeline("token-classification", model=result.model_dir)
    for row in found[1:-1]:
        starts = np.cumsum([0, *(len(word) + 1 for word in row["tokens"])])[:-1]
        first: dict[int, str] = {}
        (tokens,) = pipe([row["tokens"]], is_split_into_words=True, ignore_labels=[])
        for token in tokens:
            first.setdefault(int(np.searchsorted(starts, token["start"], side="right")) - 1, token["entity"])
        assert row["prediction"] == [first[place] for place in range(len(row["tokens"]))]
    assert len(found[0]["prediction"]) == len(words[0]) * 9 and found[0]["prediction"][-1] is None
    text = found[-1]
    assert len(text["prediction"]) == 4
    assert all(text["text"][entity["start"] : entity["end"]] == entity["word"] for entity in text["entities"])
