"""Sentence similarity: other losses, ZeRO 0 and accumulation beside SentenceTransformerTrainer; a killed run; one, two
and three workers have the batches and the losses of two; what is predicted. The fast part:
tests/integration/test_tasks.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import checkpoint_tensors, events, losses, recorded_rows, tiny_job

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import test_tasks

STEPS, SAVE, KILLED = 12, 5, 9
TRIPLETS = {"type": "sentence-similarity", "text_columns": ["anchor", "positive", "negative"], "mask_duplicates": True}


@pytest.mark.parametrize(
    ("kind", "zero_stage", "accumulation"),
    [("pairs", 0, 1), ("pairs", 3, 2), ("triplets", 0, 4), ("triplets", 3, 1), ("cosent", 0, 2), ("cosent", 3, 1),
     ("cosines", 0, 1), ("cosines", 3, 2)],
)  # fmt: skip
def test_losses(shared_ray: Any, tmp_path: Path, kind: str, zero_stage: int, accumulation: int) -> None:
    test_tasks.test_sentence_similarity(shared_ray, tmp_path, kind, zero_stage, accumulation)


def batches(folder: Path) -> dict[int, set[tuple[int, int]]]:
    found: dict[int, set[tuple[int, int]]] = {}
    for entry in recorded_rows(folder):
        found.setdefault(entry["step"], set()).update(zip(entry["rows"], entry["content"], strict=True))
    return found


def job_of(folder: Path, name: str, workers: int, dropout: float, zero_stage: int = 3) -> dict[str, Any]:
    job = tiny_job(
        folder,
        name,
        model={"config": {**test_tasks.BERT, "hidden_dropout_prob": dropout}},
        data={"global_batch_size": 16},
        deepspeed={"zero_stage": zero_stage},
        checkpoint={"save_steps": SAVE},
        training={"max_steps": STEPS},
        workers={"num_workers": workers, "max_failures": 1},
    )
    job["training"].pop("per_device_train_batch_size", None)
    return {**job, "task": TRIPLETS}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("zero_stage", "accumulation"), [(3, 1), (3, 2), (0, 2)])
def test_killed_run_ends_bit_for_bit(shared_ray: Any, tmp_path: Path, zero_stage: int, accumulation: int) -> None:
    """With dropout, which a first pass over the rows draws as well."""
    import raytrain_nlp

    test_tasks.write_anchors(tmp_path / "train.jsonl", 100, 1)
    runs, seen = {}, {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        marker = str(tmp_path / "marker")
        kill = {"kill": {"point": "mid_step", "rank": 1, "step": KILLED, "marker": marker}} if name == "killed" else {}
        shared_ray(record_rows=str(tmp_path / name), **kill)
        job = job_of(tmp_path, name, 2, 0.1, zero_stage)
        job["training"]["gradient_accumulation_steps"] = accumulation
        runs[name], seen[name] = Path(raytrain_nlp.train(job).run_dir), batches(tmp_path / name)
    assert [event["step"] for event in events(runs["killed"]) if event["kind"] == "resume"] == [SAVE]
    killed, whole = (
        checkpoint_tensors(runs[name] / "checkpoints" / f"checkpoint-{STEPS - STEPS % SAVE}")
        for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys() and len(whole) > 10
    assert all(torch.equal(killed[name], tensor) for name, tensor in whole.items())
    assert losses(runs["killed"]) == losses(runs["whole"]) and len(losses(runs["whole"])) == STEPS
    assert seen["killed"] == seen["whole"] and sorted(seen["whole"]) == list(range(STEPS))


@pytest.mark.timeout(900)
def test_one_two_and_three_workers(shared_ray: Any, tmp_path: Path) -> None:
    """The same global batches, and the same losses: each anchor has the negatives of the whole global batch."""
    import raytrain_nlp

    test_tasks.write_anchors(tmp_path / "train.jsonl", 100, 1)
    told, seen = {}, {}
    for workers, accumulation in ((1, 1), (2, 1), (3, 1), (1, 3)):
        name = f"run-{workers}-{accumulation}"
        (tmp_path / name).mkdir()
        shared_ray(record_rows=str(tmp_path / name))
        job = job_of(tmp_path, f"{name}-job", workers, 0.0)
        job["training"]["gradient_accumulation_steps"] = accumulation
        told[name], seen[name] = losses(Path(raytrain_nlp.train(job).run_dir)), batches(tmp_path / name)
    first = next(iter(told))
    for name, values in told.items():
        assert seen[name] == seen[first]
        np.testing.assert_allclose(values, told[first], atol=1e-5, rtol=0, err_msg=name)
    assert len(told[first]) == STEPS


def test_predictions_are_vectors_of_sentence_transformers(shared_ray: Any, tmp_path: Path) -> None:
    """Of a file of anchors and of a file of texts, each with its prompt; of the run, its export and an adapter."""
    import pyarrow.parquet
    from sentence_transformers import SentenceTransformer

    import raytrain_nlp

    rows = test_tasks.write_anchors(tmp_path / "train.jsonl", 200, 1)
    task = {"type": "sentence-similarity", "query_prompt": "1 ", "normalize": True}
    for name, lora in (("run", None), ("adapter", {"r": 4, "target_modules": "all-linear"})):
        job = tiny_job(tmp_path, name, data={"max_length": 12}, training={"max_steps": 20, "save_strategy": "no"})
        result = raytrain_nlp.train({**job, "task": task, **({"lora": lora} if lora else {})})
        exported = raytrain_nlp.export(result.run_dir, str(tmp_path / f"export-{name}"), merge_lora=bool(lora))
        model = SentenceTransformer(exported.output, device="cpu")
        for column, kind, encode in (
            ("anchor", "jsonl", model.encode_query),
            ("text", "parquet", model.encode_document),
        ):
            texts = [row["anchor" if column == "anchor" else "positive"] for row in rows[:30]]
            (tmp_path / "new.jsonl").write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
            output = tmp_path / f"{name}-{column}.{kind}"
            raytrain_nlp.predict(result.run_dir, str(tmp_path / "new.jsonl"), str(output))
            found = (
                [json.loads(line)["embedding"] for line in output.read_text().splitlines()]
                if kind == "jsonl"
                else pyarrow.parquet.read_table(output)["embedding"].to_pylist()
            )
            np.testing.assert_allclose(np.array(found), encode(texts), atol=1e-5)
