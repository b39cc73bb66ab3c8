"""What is done with a run: evaluate gives its own figures, export its weights from any checkpoint. DDP, ZeRO-3, and
LoRA under ZeRO-3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from support import run_cli, tiny_job, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raytrain_nlp
from raytrain_nlp.checkpoint import store

ROWS, VALID = 160, 51
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "modules_to_save": ["classifier"]}
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"deepspeed": {"zero_stage": 0}},
    "zero3": {"deepspeed": {"zero_stage": 3, "stage3_param_persistence_threshold": 0}},
    "lora": {"deepspeed": {"zero_stage": 3}, "lora": LORA},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("after")
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "validation.jsonl", VALID, seed=1)
    write_rows(folder / "other.jsonl", 37, seed=2)
    return folder


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request: pytest.FixtureRequest, folder: Path, train_warm: Any) -> Any:
    """A run of each kind, with a checkpoint after each of two epochs."""
    sections = {
        **KINDS[request.param],
        "data": {"validation": str(folder / "validation.jsonl")},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-2},
    }
    return train_warm(tiny_job(folder, request.param, **sections))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def logits_of(model: Any, folder: Path, rows: list[dict[str, Any]]) -> torch.Tensor:
    """[rows, labels]; each row alone, with transformers only."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat(
            [
                model.eval()(**tokenizer(row["text"], truncation=True, max_length=48, return_tensors="pt")).logits
                for row in rows
            ]
        )


def load(folder: Path) -> Any:
    if (folder / "adapter_config.json").exists():
        from peft import AutoPeftModelForSequenceClassification

        return AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def test_evaluate_gives_the_runs_own_figures(trained: Any, folder: Path, shared_ray: Any) -> None:
    result = raytrain_nlp.evaluate(trained.run_dir)
    own = {
        key: value
        for key, value in trained.metrics.items()
        if key.startswith("eval_") and "second" not in key and "runtime" not in key
    }
    assert {key: result.metrics[key] for key in own} == pytest.approx(own, abs=1e-6)
    assert result.rows == VALID and result.weights == "model"


def test_evaluate_other_data_and_an_earlier_checkpoint(trained: Any, folder: Path, shared_ray: Any) -> None:
    """Against transformers and scikit-learn alone, on the weights of the first epoch."""
    step = ROWS // 16
    scores = folder / "scores.jsonl"
    result = raytrain_nlp.evaluate(
        trained.run_dir,
        data=str(folder / "other.jsonl"),
        checkpoint=step,
        scores=scores,
        overrides=["workers.num_workers=1"],
    )
    exported = raytrain_nlp.export(trained.run_dir, folder / "early", checkpoint=step, overwrite=True)
    assert exported.source == result.weights == f"checkpoint-{step}"
    rows = rows_of(folder / "other.jsonl")
    logits = logits_of(load(folder / "early"), folder / "early", rows)
    truth, best = [row["label"] for row in rows], logits.argmax(-1).tolist()
    assert result.metrics["eval_accuracy"] == pytest.approx(accuracy_score(truth, best))
    assert result.report["confusion_matrix"] == confusion_matrix(truth, best, labels=[0, 1]).tolist()
    found = rows_of(scores)
    assert [row["line"] for row in found] == list(range(1, 38)) and [row["label"] for row in found] == [
        str(label) for label in truth
    ]
    probabilities = torch.tensor([[row["probabilities"][name] for name in ("0", "1")] for row in found])
    torch.testing.assert_close(probabilities, logits.softmax(-1), atol=1e-5, rtol=0)


def test_export_from_a_checkpoint_is_the_model(trained: Any, folder: Path) -> None:
    """Of the last step both are the same weights; from the shards of two ranks where ZeRO-3 wrote them."""
    out, run = folder / "last", Path(trained.run_dir)
    result = raytrain_nlp.export(run, out, checkpoint="last", overwrite=True)
    whole, own = load(out).state_dict(), load(run / "model").state_dict()
    assert whole.keys() == own.keys() and all(torch.equal(whole[name], own[name]) for name in whole)
    assert (
        result.dtype == "float32"
        and "eval" not in (out / "README.md").read_text()
        and "bert model for text-classification" in (out / "README.md").read_text()
    )
    half = raytrain_nlp.export(run, folder / "half", dtype="bf16", overwrite=True)
    assert half.dtype == "bfloat16" and half.adapter == result.adapter
    assert "| eval_accuracy |" in (folder / "half" / "README.md").read_text()
    reduced = load(folder / "half").state_dict()
    assert all(
        torch.equal(reduced[name].float(), own[name].bfloat16().float())
        for name in own
        if own[name].is_floating_point() and "lora" in name
    )


def test_merged_and_registered(trained: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run, rows = Path(trained.run_dir), rows_of(folder / "validation.jsonl")
    result = raytrain_nlp.export(run, folder / "merged", merge_lora=True, register="tiny", overwrite=True)
    assert not result.adapter
    before = logits_of(load(run / "model"), run / "model", rows)
    torch.testing.assert_close(logits_of(load(folder / "merged"), folder / "merged", rows), before, atol=1e-4, rtol=0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model(f"models:/tiny/{result.model_version}").predict([row["text"] for row in rows[:5]])
    labels = AutoModelForSequenceClassification.from_pretrained(folder / "merged").config.id2label
    assert list(served["label"]) == [labels[int(best)] for best in before[:5].argmax(-1)]


def test_what_cannot_be_exported_is_one_line(trained: Any, folder: Path) -> None:
    run = Path(trained.run_dir)
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "file").touch()
    for arguments, expected in [
        ([str(run), "--output", str(folder / "taken")], "--output: is not empty"),
        ([str(run), "--output", str(run)], "--output: would replace the run itself"),
        (
            [str(run), "--output", str(folder / "new"), "--checkpoint", "7"],
            "--checkpoint: there is no checkpoint of step 7",
        ),
        ([str(run)[:-1], "--output", str(folder / "new")], f"Did you mean '{run.name}'?"),
        ([str(run), "--output", str(folder / "new"), "--dtype", "int4"], "--dtype: is unknown (int4)"),
    ]:
        finished = run_cli("export", *arguments)
        assert finished.returncode == 2 and expected in finished.stderr and len(finished.stderr.splitlines()) == 1, (
            finished.stderr
        )
    assert not (folder / "new").exists()


def test_a_damaged_checkpoint_is_passed_over(trained: Any, folder: Path) -> None:
    checkpoints = store.list_checkpoints(Path(trained.run_dir) / "checkpoints")
    victim = max(checkpoints[-1].path.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(raytrain_nlp.InputError, match="is damaged"):
            raytrain_nlp.export(
                trained.run_dir, folder / "damaged", checkpoint=checkpoints[-1].manifest.step, overwrite=True
            )
        assert (
            raytrain_nlp.export(trained.run_dir, folder / "damaged", checkpoint="last", overwrite=True).source
            == checkpoints[0].path.name
        )
    finally:
        victim.write_bytes(content)
