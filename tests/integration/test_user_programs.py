"""Programs of users, on one worker and on plain `Trainer`: the same events, states, figures and weights.

The workers' loop runs in this process, on a feed without Ray; what several workers add is in test_techniques.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_trainer import DATA, resolved, run_ours, run_plain
from support import plain_job, tiny_job, write_rows
from user_programs import Recorder  # noqa: F401 - named by jobs

ROWS, UNEVEN, VALIDATION = 24, 28, 16
PROGRAM = "user_programs:"
TWICE = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
WHOLE = {"training": {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}}
"""BERT's loss leaves `num_items_in_batch` out, and plain `Trainer` then adds the means of micro-batches up; here they
make one mean, as of a whole batch there.
"""
_STEPS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}

LANGUAGE = {
    "task": {"type": "causal-lm", "text_column": "text", "packing": "none"},
    "model": {
        "tokenizer": "train",
        "tokenizer_training": {"vocab_size": 400},
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
    },
}

PROGRAMS: dict[str, dict[str, Any]] = {
    "trainer": {"training": {"save_strategy": "epoch"}},
    "accumulation": {"training": TWICE, "plain": WHOLE},
    "language model, accumulation": {"model": "language", "training": TWICE},
    "language model, sum over the count": {
        "model": "language",
        "trainer": {"class": "TokenSumOverCount"},
        "training": TWICE,
    },
    "language model, base's loss and a penalty": {
        "model": "language",
        "trainer": {"class": "Penalty"},
        "training": TWICE,
    },
    "language model, loss only": {"model": "language", "training": {"prediction_loss_only": True}},
    "uneven last update, one log": {"training": {"logging_strategy": "no"}, "rows": "uneven"},
    "weighted loss, uneven last update": {"trainer": {"class": "WeightedLoss"}, "rows": "uneven"},
    "loss of an older signature": {"trainer": {"class": "OldSignature"}, "plain": {"class": "NewSignature"}},
    "mean that says so": {"trainer": {"class": "MeanOfBatch"}, "training": TWICE},
    "sum over the count": {"trainer": {"class": "SumOverCount"}, "training": TWICE},
    "sum over the count of ranks": {"trainer": {"class": "SumOverCountOfRanks"}, "training": TWICE},
    "base's loss and a penalty": {"trainer": {"class": "Penalty"}, "training": TWICE, "plain": WHOLE},
    "compute_loss_func": {"trainer": {"compute_loss_func": "sum_over_count"}, "training": TWICE},
    "label smoothing": {"training": {"label_smoothing_factor": 0.1}},
    "step that divides": {"trainer": {"class": "OwnStep"}, "training": TWICE},
    "step around the base's": {
        "trainer": {"class": "CountingStep"},
        "training": TWICE,
        "plain": {"class": "Nothing", **WHOLE},
    },
    "two backward passes": {"trainer": {"class": "Adversarial"}},
    "backward pass of one's own": {"trainer": {"class": "OwnBackward"}, "training": TWICE},
    "batches made anew": {
        "trainer": {"class": "OwnBatches"},
        "training": TWICE,
        "plain": {"class": "Nothing", **WHOLE},
    },
    "create_optimizer": {"trainer": {"class": "Sgd"}},
    "create_scheduler": {"trainer": {"class": "OwnScheduler"}},
    "class of optimizer, names that decay, flops": {
        "trainer": {"class": "OwnOptimizerClass"},
        "training": {"weight_decay": 0.1},
    },
    "optimizers of __init__ with an argument": {
        "trainer": {"class": "PassedOptimizers", "arguments": {"momentum": 0.9}}
    },
    "evaluate and predict of more rows": {"trainer": {"class": "EvaluatesMore"}},
    "loop, step and log around the base's": {"trainer": {"class": "MoreFigures"}},
    "functions given to the base": {"trainer": {"class": "OwnMetrics"}},
    "inputs and losses for metrics": {
        "trainer": {"compute_metrics": "figures"},
        "training": {"include_for_metrics": ["inputs", "loss"]},
    },
    "metrics batch by batch": {
        "trainer": {"compute_metrics": "batch_figures"},
        "training": {"batch_eval_metrics": True},
    },
    "batches apart": {"trainer": {"compute_metrics": "figures"}, "training": {"eval_do_concat_batches": False}},
    "logits reduced": {"trainer": {"compute_metrics": "figures", "preprocess_logits_for_metrics": "likeliest"}},
    "loss only": {"training": {"prediction_loss_only": True}},
    "epochs that end early": {"trainer": {"callbacks": [{"class": "StopsEpochs", "arguments": {"steps": 2}}]}},
    "epochs that end early, max_steps": {
        "trainer": {"callbacks": ["StopsEpochs"]},
        "training": {"max_steps": 5, **TWICE},
        "plain": WHOLE,
    },
    "callback that decides": {"trainer": {"callbacks": ["Decides"]}},
    "best model and early stopping": {
        "training": {**_STEPS, "num_train_epochs": 3, "learning_rate": 0.02},
        "early_stopping": {"early_stopping_patience": 2},
    },
    "evaluation at the start, first step logged": {"training": {"eval_on_start": True, "logging_steps": 3}},
    "several validation sets": {
        "validation": ["validation", "more"],
        "training": {**_STEPS, "metric_for_best_model": "more_loss", "load_best_model_at_end": True},
    },
    "tokens seen": {"training": {"include_num_input_tokens_seen": "non_padding"}},
}


def full_names(user: dict[str, Any]) -> dict[str, Any]:
    """Names of the programs as a job file has them."""
    named = {key: value if key == "arguments" else PROGRAM + value for key, value in user.items() if key != "callbacks"}
    callbacks = [
        PROGRAM + found if isinstance(found, str) else {**found, "class": PROGRAM + found["class"]}
        for found in user.get("callbacks", [])
    ]
    return {**named, "callbacks": [*callbacks, f"{PROGRAM}Recorder"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and what the driver prepares of them once for all programs."""
    made = tmp_path_factory.mktemp("programs")
    write_rows(made / "train.jsonl", ROWS)
    write_rows(made / "uneven.jsonl", UNEVEN)
    write_rows(made / "validation.jsonl", VALIDATION, seed=1)
    write_rows(made / "more.jsonl", 8, seed=2)
    write_rows(made / "test.jsonl", 8, seed=3)
    return made


def encoded(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{**tokenizer(row["text"], truncation=True, max_length=48), "labels": int(row["label"])} for row in rows]


def tokenized(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    return [
        {**found, "labels": list(found["input_ids"])}
        for found in (tokenizer(text, truncation=True, max_length=48, return_token_type_ids=False) for text in rows)
    ]


def token_accuracy(prediction: Any) -> dict[str, float]:
    best, truth = prediction.predictions.argmax(-1)[:, :-1], prediction.label_ids[:, 1:]
    return {"accuracy": float((best == truth)[truth != -100].mean())}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_plain_trainer_in_one_process(folder: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithPadding

    program = dict(PROGRAMS[name])
    sets = {found: folder / f"{found}.jsonl" for found in program.pop("validation", ["validation"])}
    named = {found: str(file) for found, file in sets.items()}
    rows, plainly, language = (
        folder / f"{program.pop('rows', 'train')}.jsonl",
        program.pop("plain", {}),
        program.pop("model", None),
    )
    training = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        **program.pop("training", {}),
    }
    values = plain_job(
        folder,
        "run",
        data={"train": str(rows), "validation": named if len(named) > 1 else named["validation"]},
        workers={"num_workers": 1},
        training=training,
        trainer=full_names(program.pop("trainer", {})),
        **program,
    )
    values |= LANGUAGE if language else {}
    job, spec = resolved(values, folder / "runs")
    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer_dir)
    DATA.update({key: encoded(folder / f"{key}.jsonl", tokenizer) for key in ("more", "test")})
    encode, collator, metrics = (
        (tokenized, DataCollatorForSeq2Seq, token_accuracy)
        if language
        else (encoded, DataCollatorWithPadding, accuracy)
    )
    there, _ = resolved(
        {
            **values,
            "trainer": {**values["trainer"], **({"class": PROGRAM + plainly["class"]} if "class" in plainly else {})},
            "training": {**values["training"], **plainly.get("training", {})},
        },
        folder / "runs",
    )
    validation = {found: encode(file, tokenizer) for found, file in sets.items()}
    plain = run_plain(
        there,
        spec,
        tmp_path,
        encode(rows, tokenizer),
        validation if len(sets) > 1 else validation["validation"],
        collator(tokenizer),
        metrics,
    )
    ours = run_ours(job, spec, tmp_path)
    if "training" in plainly:  # one micro-batch there
        ours["events"] = [event for event in ours["events"] if event[0] != "on_substep_end"]
    assert ours["events"] == plain["events"]
    assert len(ours["logs"]) == len(plain["logs"])
    for found, expected in zip(ours["logs"], plain["logs"], strict=True):
        expected = {
            key: value for key, value in expected.items() if not language or key != "eval_loss"
        }  # there a mean of the means of batches
        assert {key: found.get(key) for key in expected} == pytest.approx(
            expected, abs=1e-6, rel=1e-5 if language else 1e-6
        )
    assert ours["weights"].keys() == plain["weights"].keys() and plain["weights"]
    for key, value in plain["weights"].items():
        torch.testing.assert_close(ours["weights"][key], value, atol=1e-5 if language else 1e-6, rtol=1e-5, msg=key)
    if "class" not in plainly:
        assert ours["seen"].keys() == plain["seen"].keys() and ours["seen"].get("counts") == plain["seen"].get("counts")
    if "predicted" in plain["seen"]:
        for found, expected in zip(ours["seen"]["predicted"][:2], plain["seen"]["predicted"][:2], strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)
    if "loss only" in name:
        assert ("eval_perplexity" in ours["logs"][-2]) == bool(language) and "eval_accuracy" not in ours["logs"][-2]


@pytest.mark.parametrize(("save_steps", "dies"), [(2, 3), (3, 4)])
def test_resume_where_epochs_end_early(folder: Path, tmp_path: Path, save_steps: int, dies: int) -> None:
    """From a checkpoint at the end of such an epoch, and from one inside the next: the batches and weights of a run
    that was not killed.
    """
    training = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": save_steps,
    }
    ends = {"class": f"{PROGRAM}StopsEpochs", "arguments": {"steps": 2}}
    last = {"class": f"{PROGRAM}Dies", "arguments": {"step": dies, "marker": str(tmp_path / "dead")}}
    job, spec = resolved(
        plain_job(
            tmp_path,
            "run",
            data={"train": str(folder / "train.jsonl")},
            workers={"num_workers": 1},
            training=training,
            trainer={"callbacks": [ends, last, f"{PROGRAM}Recorder"]},
        ),
        folder / "runs",
    )
    (tmp_path / "dead").touch()
    (tmp_path / "whole").mkdir()
    truth = run_ours(job, spec, tmp_path / "whole")
    (tmp_path / "dead").unlink()
    (tmp_path / "killed").mkdir()
    with pytest.raises(OSError, match="the machine is gone"):
        run_ours(job, spec, tmp_path / "killed")
    again = run_ours(job, spec, tmp_path / "killed")
    steps = [event for event in truth["events"] if event[0] == "on_step_end"]
    assert len(steps) == 6 and [event for event in again["events"] if event[0] == "on_step_end"] == steps[save_steps:]
    assert all(torch.equal(again["weights"][key], value) for key, value in truth["weights"].items())


def test_two_workers_are_one_process(
    shared_ray: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum over the count, an uneven last update, one log at the end, two validation sets, rows of one's own: what
    plain `Trainer` gives in one process.
    """
    import user_programs
    from transformers import AutoTokenizer, DataCollatorWithPadding

    import raytrain_nlp

    monkeypatch.chdir(Path(user_programs.__file__).parent)
    write_rows(tmp_path / "rows.jsonl", 9, seed=5)
    sets = {"first": str(folder / "validation.jsonl"), "second": str(folder / "more.jsonl")}
    values = tiny_job(
        tmp_path,
        "two",
        data={"train": str(folder / "uneven.jsonl"), "validation": sets},
        trainer={"class": f"{PROGRAM}ScoresRows", "arguments": {"file": str(tmp_path / "rows.jsonl")}},
        training={
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "train_sampling_strategy": "sequential",
            "logging_strategy": "no",
        },
    )
    result = raytrain_nlp.train(values)
    alone = {
        **values,
        "workers": {"num_workers": 1},
        "training": {**values["training"], "per_device_train_batch_size": 8},
    }
    job, spec = resolved({**alone, "trainer": {"class": f"{PROGRAM}SumOverCount"}}, tmp_path / "runs")
    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer_dir)
    validation = {name: encoded(Path(file), tokenizer) for name, file in sets.items()}
    plain = run_plain(
        job,
        spec,
        tmp_path,
        encoded(folder / "uneven.jsonl", tokenizer),
        validation,
        DataCollatorWithPadding(tokenizer),
        accuracy,
    )
    there = plain["trainer"]
    rows = encoded(tmp_path / "rows.jsonl", tokenizer)
    expected = {
        **there.evaluate(rows, metric_key_prefix="eval_rows"),
        **there.evaluate(encoded(folder / "uneven.jsonl", tokenizer)[:5], metric_key_prefix="eval_five"),
    }
    for entry in plain["logs"]:
        expected |= {key: value for key, value in entry.items() if key.startswith(("eval_", "train_"))}
    expected = {key: value for key, value in expected.items() if key.endswith(("_loss", "_accuracy"))}
    assert set(expected) == {
        "train_loss",
        *(f"eval_{name}_{figure}" for name in ("first", "second", "rows", "five") for figure in ("loss", "accuracy")),
    }
    assert {key: result.metrics[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert {key: result.metrics[f"eval_{key}_samples"] for key in ("first", "second", "rows", "five")} == {
        "first": 16,
        "second": 8,
        "rows": 9,
        "five": 5,
    }
    assert result.rows == {"train": UNEVEN, "validation.first": 16, "validation.second": 8}
    for rank in (0, 1):
        np.testing.assert_allclose(
            json.loads((tmp_path / f"predicted-{rank}.json").read_text()), there.predict(rows).predictions, atol=1e-4
        )


def test_metrics_batch_by_batch_on_two_workers(
    shared_ray: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of plain `Trainer` in one process, and those that the run has without `batch_eval_metrics`; of an
    uneven last batch too.
    """
    import user_programs
    from transformers import AutoTokenizer, DataCollatorWithPadding

    import raytrain_nlp

    monkeypatch.chdir(Path(user_programs.__file__).parent)
    validation = write_rows(tmp_path / "validation.jsonl", 21, seed=4)
    values = tiny_job(
        tmp_path,
        "batches",
        data={"train": str(folder / "train.jsonl"), "validation": str(validation)},
        trainer={"compute_metrics": f"{PROGRAM}batch_figures"},
        training={
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "batch_eval_metrics": True,
        },
    )
    ours = raytrain_nlp.train(values).metrics
    without = raytrain_nlp.train(
        {**values, "name": "whole", "trainer": {}, "training": {**values["training"], "batch_eval_metrics": False}}
    ).metrics
    one = {"workers": {"num_workers": 1}, "training": {**values["training"], "per_device_train_batch_size": 8}}
    job, spec = resolved({**values, **one}, tmp_path / "runs")
    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer_dir)
    rows = [encoded(file, tokenizer) for file in (folder / "train.jsonl", validation)]
    plain = run_plain(job, spec, tmp_path, *rows, DataCollatorWithPadding(tokenizer), None)["trainer"].evaluate()

    def some(metrics: dict[str, float], *names: str) -> dict[str, float]:
        return {name: metrics[f"eval_{name}"] for name in names}

    assert some(ours, "share", "rows", "loss") == pytest.approx(some(plain, "share", "rows", "loss"), abs=1e-5)
    assert some(ours, "loss", "accuracy", "f1", "mcc") == pytest.approx(
        some(without, "loss", "accuracy", "f1", "mcc"), abs=1e-6
    )
    assert ours["eval_rows"] == 21 and ours["eval_accuracy"] == ours["eval_share"]
