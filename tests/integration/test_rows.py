"""Every training row once an epoch, every evaluation row scored once, the same global batches at any number of
workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from support import events, recorded_rows, tiny_job, write_rows

ROWS = 1003


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.jsonl", ROWS, seed=1)
    write_rows(folder / "validation.jsonl", ROWS, seed=2)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[int, Any]:
    """What runs at each number of workers saw; filled by the runs below, in the order of the parameters."""
    return {}


def train(folder: Path, shared_ray: Any, workers: int, **sections: Any) -> tuple[Any, list[list[int]]]:
    """A run's result and its global batches, put together from what each rank recorded."""
    import raytrain_nlp

    rows = folder / f"rows-{workers}-{len(list(folder.iterdir()))}"
    rows.mkdir()
    shared_ray(record_rows=str(rows))
    sections.setdefault("data", {"validation": str(folder / "validation.jsonl"), "global_batch_size": 16})
    training = {"per_device_train_batch_size": None, "per_device_eval_batch_size": 8}
    job = tiny_job(folder, rows.name, workers={"num_workers": workers}, training=training, **sections)
    job["training"] = {key: value for key, value in job["training"].items() if value is not None}
    result = raytrain_nlp.train(job)
    batches: dict[int, list[tuple[int, int, list[int]]]] = defaultdict(list)
    for entry in recorded_rows(rows):
        batches[entry["step"]].append((entry["micro"], entry["rank"], entry["rows"]))
    return result, [[row for _, _, part in sorted(batches[step]) for row in part] for step in sorted(batches)]


@pytest.mark.quick
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_of_an_epoch_and_of_the_evaluation(
    shared_ray: Any, folder: Path, seen: dict[int, Any], workers: int
) -> None:
    result, batches = train(folder, shared_ray, workers)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(ROWS))  # none missing, none twice
    assert [len(batch) for batch in batches] == [16] * 62 + [11]
    assert result.metrics["eval_samples"] == ROWS and result.rows == {"train": ROWS, "validation": ROWS}
    seen[workers] = batches
    assert batches == seen[1] if 1 in seen else True
    assert result.tokenized_rows == (2 * ROWS if len(seen) == 1 else 0)  # tokens are prepared once for all runs


def test_rows_of_a_mixture(shared_ray: Any, folder: Path) -> None:
    """Three to one of two files: the same global batches at one and two workers, shares kept, no row of a source seen
    again before all of it were.
    """
    (folder / "small.jsonl").write_text("".join((folder / "train.jsonl").read_text().splitlines(True)[:300]))
    sources = [
        {"path": str(folder / "train.jsonl"), "weight": 3},
        {"path": str(folder / "small.jsonl"), "weight": 1},
    ]
    data = {"train": sources, "global_batch_size": 16}
    (result, batches), (_, on_two) = (train(folder, shared_ray, workers, data=data) for workers in (1, 2))
    rows = [row for batch in batches for row in batch]
    assert batches == on_two and result.rows == {"train": ROWS + 300} and len(rows) == ROWS + 300
    of_small = [row for row in rows if row >= ROWS]
    assert len(of_small) == round((ROWS + 300) / 4)
    assert max(Counter(of_small).values()) == 2 and len(set(of_small)) == 300
    assert max(Counter(row for row in rows if row < ROWS).values()) == 1


def test_model_dir_is_plain_hugging_face(shared_ray: Any, folder: Path, tmp_path: Path) -> None:
    """The exported model, alone in a process without this package, scores what the run reported."""
    import raytrain_nlp

    job = tiny_job(
        folder,
        "exported",
        data={"validation": str(folder / "validation.jsonl")},
        deepspeed={"zero_stage": 3},
        training={"max_steps": 20},
    )
    job["task"]["label_names"] = ["0", "1"]
    result = raytrain_nlp.train(job)
    program = tmp_path / "score.py"
    program.write_text(
        "import json, sys, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "model, tokenizer = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval(), AutoTokenizer.from_pretrained(sys.argv[1])\n"  # noqa: E501
        "rows = [json.loads(line) for line in open(sys.argv[2])]\n"
        "inputs = tokenizer([row['text'] for row in rows], truncation=True, max_length=48, padding=True, return_tensors='pt')\n"  # noqa: E501
        "with torch.no_grad():\n    best = model(**inputs).logits.argmax(-1).tolist()\n"
        "right = sum(model.config.id2label[i] == str(row['label']) for i, row in zip(best, rows))\n"
        "assert not any(name.startswith('raytrain_nlp') for name in sys.modules)\n"
        "print(json.dumps(right / len(rows)))\n"
    )
    output = subprocess.run(
        [sys.executable, program, result.model_dir, folder / "validation.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(output.stdout.splitlines()[-1]) == pytest.approx(result.metrics["eval_accuracy"], abs=1e-9)
    assert not list(Path(result.model_dir).glob("*.bin"))  # no pickle


def test_three_rows_and_two_workers(shared_ray: Any, folder: Path) -> None:
    write_rows(folder / "three.jsonl", 30)
    (folder / "three.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(3)))
    result, batches = train(folder, shared_ray, 2, data={"train": str(folder / "three.jsonl")})
    assert result.global_step == 1 and [sorted(batch) for batch in batches] == [[0, 1, 2]]


def test_best_model_and_early_stopping_by_steps(shared_ray: Any, folder: Path) -> None:
    """ZeRO-3, a learning rate that ruins the model after a while: the best evaluation's weights are exported, and the
    run stops.
    """
    import raytrain_nlp

    job = tiny_job(
        folder,
        "best",
        data={"validation": str(folder / "validation.jsonl")},
        deepspeed={"zero_stage": 3},
        training={
            "learning_rate": 0.02,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 3,
            "eval_strategy": "steps",
            "eval_steps": 10,
            "save_steps": 10,
        },
        early_stopping={"early_stopping_patience": 2},
        checkpoint={"save_total_limit": 1},
    )
    result = raytrain_nlp.train(job)
    evaluated = {
        event["step"]: event["metrics"]["eval_loss"]
        for event in events(Path(result.run_dir))
        if "eval_loss" in event.get("metrics", {})
    }
    best = min(evaluated, key=evaluated.get)
    assert result.best_step == best and result.metrics["eval_loss"] == pytest.approx(evaluated[best])
    assert result.global_step == best + 20 < 189  # patience 2
    assert result.ended_early == (
        f"after step {best + 20} of 189: early_stopping, no better evaluation in 2 (best: step {best})"
    )
    again = raytrain_nlp.train(
        {
            **job,
            "name": "best-alone",
            "model": {"name_or_path": result.model_dir},
            "early_stopping": None,
            "training": {
                "per_device_train_batch_size": 8,
                "max_steps": 1,
                "learning_rate": 0.0,
                "eval_strategy": "steps",
                "eval_steps": 1,
            },
        }
    )
    assert again.metrics["eval_loss"] == pytest.approx(evaluated[best], abs=1e-5)
