"""Runs whose labels come from the data: training and evaluation agree on what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from support import tiny_job

import raytrain_nlp
from raytrain_nlp.run.saved_run import find_run

GOOD, BAD = "good fine nice good", "bad poor awful bad"


def job(folder: Path, name: str, train: Path, **sections: Any) -> dict[str, Any]:
    data = {"train": str(train), "validation": str(train)}
    return tiny_job(folder, name, **{"deepspeed": {"zero_stage": 0}, **sections, "data": data})


def test_multi_hot_and_declared_names_through_a_run(tmp_path: Path, train_warm: Any) -> None:
    """Evaluation reads the lists as training did, with the names of the run; resuming a finished run finds the same
    job.
    """
    lists = [[float(i % 2 == 0), float(i % 2), float(i % 3 == 0)] for i in range(48)]
    rows = [
        {"text": f"{(GOOD, BAD)[i % 2]} {'third' if i % 3 == 0 else ''} {i}", "label": row}
        for i, row in enumerate(lists)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    given = job(
        tmp_path,
        "hot",
        tmp_path / "data",
        task={"problem_type": "multi_label_classification", "label_names": ["a", "b", "c"]},
    )
    result = train_warm(given)
    assert result.labels == ["a", "b", "c"] and find_run(result.run_dir).job.task.multi_hot is True
    found = raytrain_nlp.evaluate(result.run_dir, overrides=["workers.num_workers=1"], scores=tmp_path / "scores.jsonl")
    assert found.metrics["eval_loss"] == pytest.approx(result.metrics["eval_loss"], abs=1e-5) and found.rows == 48
    scores = [json.loads(line)["label"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert sorted(map(tuple, scores)) == sorted(
        tuple(name for name, value in zip("abc", row, strict=True) if value) for row in lists
    )
    assert raytrain_nlp.train(given, resume=True).run_dir == result.run_dir


LETTERS = {"pos": "good fine nice", "neg": "bad poor awful", "mid": "so plain usual"}


def letters(folder: Path, name: str, labels: list[str]) -> Path:
    """Rows of these labels, which come in this order."""
    rows = [{"text": f"{LETTERS.get(label, 'else other')} {i}", "label": label} for i in range(6) for label in labels]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


def test_the_rows_of_a_head_follow_their_names_through_runs(tmp_path: Path, train_warm: Any) -> None:
    """A run that starts from an export whose labels stood in another order: with nothing learned, each name keeps its
    logit.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [f"{words} {i}" for words in LETTERS.values() for i in range(3)]

    def logits(folder: str) -> dict[str, torch.Tensor]:
        model, tokenizer = (
            AutoModelForSequenceClassification.from_pretrained(folder).eval(),
            AutoTokenizer.from_pretrained(folder),
        )
        with torch.no_grad():
            found = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        return {model.config.id2label[place]: found[:, place] for place in range(found.shape[1])}

    first = job(
        tmp_path, "first", letters(tmp_path, "all", ["pos", "neg", "mid"]), task={"label_names": ["pos", "neg", "mid"]}
    )
    exported = raytrain_nlp.export(train_warm(first).run_dir, tmp_path / "exported").output
    truth = logits(exported)
    assert list(truth) == ["pos", "neg", "mid"]
    still = {"max_steps": 1, "learning_rate": 0.0}
    for name, labels, sections, renamed in (
        ("permuted", ["mid", "pos", "neg"], {}, {}), ("named", ["mid", "pos", "neg"], {"task": {"label_names": ["neg", "mid", "pos"]}}, {}),  # noqa: E501
        ("fewer", ["mid", "pos"], {}, {}), ("unknown", ["neg", "new", "pos"], {}, {"mid": "new"}),
    ):  # fmt: skip
        second = job(tmp_path, name, letters(tmp_path, name, labels), training=still, **sections)
        second["model"] = {"name_or_path": exported}
        result = train_warm(second)
        found = logits(result.model_dir)
        assert set(found) == {renamed.get(label, label) for label in truth}, name
        for label, expected in truth.items():
            torch.testing.assert_close(
                found[renamed.get(label, label)], expected, atol=1e-6, rtol=0, msg=f"{name}: {label}"
            )
    again = raytrain_nlp.evaluate(result.run_dir, overrides=["workers.num_workers=1"])
    assert again.metrics["eval_loss"] == pytest.approx(result.metrics["eval_loss"], abs=1e-6) and set(
        again.labels
    ) == set(found)
