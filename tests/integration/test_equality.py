"""Losses and weights equal a single-process Hugging Face `Trainer` fed the same global batches, for every ZeRO stage.

The truth always takes a global batch as one batch: with gradient accumulation transformers 5.23 logs, and clips, the
sum of the micro-batches' means for models whose loss ignores `num_items_in_batch` (BERT's classifier does), instead of
the mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TINY, losses, tiny_job, write_rows

STEPS = 20


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a tokenizer and a model folder with fixed weights; the plan's global batches come from the plan alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("equality")
    rows = [json.loads(line) for line in write_rows(folder / "train.jsonl", 400).read_text().splitlines()]
    words = sorted({word for row in rows for word in row["text"].split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=48
    )
    set_seed(1)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(**TINY, vocab_size=len(vocabulary), pad_token_id=0, num_labels=2)
    )
    fast.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    return folder


def job_of(setting: Path, stage: int, accumulation: int, **training: Any) -> dict[str, Any]:
    return tiny_job(
        setting,
        f"zero{stage}-ga{accumulation}{'-bf16' if training.get('bf16') else ''}",
        model={"name_or_path": str(setting / "model"), "config": None, "tokenizer": None},
        deepspeed={"zero_stage": stage},
        training={
            "per_device_train_batch_size": 8 // accumulation,
            "gradient_accumulation_steps": accumulation,
            "max_steps": STEPS,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "save_strategy": "no",
            **training,
        },
    )


def plain_trainer(setting: Path, batches: list[np.ndarray], output: Path) -> tuple[list[float], dict[str, Any]]:
    """The same 20 updates by Hugging Face's own `Trainer`, in one process."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(setting / "model")
    rows = [json.loads(line) for line in (setting / "train.jsonl").read_text().splitlines()]
    examples = [
        {**tokenizer(rows[i]["text"], truncation=True, max_length=48), "label": rows[i]["label"]}
        for batch in batches
        for i in batch
    ]
    logged: list[float] = []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                logged.append(logs["loss"])

    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=16,
        max_steps=STEPS,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(setting / "model")
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Log()],
    )
    trainer.train()
    return logged, {name: value.detach() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def truth(setting: Path) -> tuple[list[float], dict[str, Any]]:
    from raytrain_nlp.data.plan import Plan, PlanSpec

    lengths = np.array(
        [min(len(json.loads(line)["text"].split()), 48) for line in (setting / "train.jsonl").read_text().splitlines()]
    )
    plan = Plan(PlanSpec(400, 7, "group_by_length", 16), lengths)
    batches = [plan.at(step)[2] for step in range(STEPS)]
    return plain_trainer(setting, batches, setting / "plain")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_first_twenty_losses_and_final_weights(
    shared_ray: Any, setting: Path, truth: Any, stage: int, accumulation: int
) -> None:
    import raytrain_nlp

    result = raytrain_nlp.train(job_of(setting, stage, accumulation))
    expected_losses, expected_weights = truth
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected_losses, atol=1e-4, rtol=0)
    from transformers import AutoModelForSequenceClassification

    weights = AutoModelForSequenceClassification.from_pretrained(result.model_dir).state_dict()
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        np.testing.assert_allclose(weights[name].numpy(), value.numpy(), atol=2e-4, rtol=0, err_msg=name)


def accuracy_and_f1(prediction: Any) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    best = prediction.predictions.argmax(-1)
    return {"accuracy": accuracy_score(prediction.label_ids, best), "f1": f1_score(prediction.label_ids, best)}


def correlations(prediction: Any) -> dict[str, float]:
    from scipy.stats import rankdata

    guess, truth = prediction.predictions.reshape(-1), prediction.label_ids.reshape(-1)
    return {
        "pearson": np.corrcoef(guess, truth)[0, 1],
        "spearmanr": np.corrcoef(rankdata(guess), rankdata(truth))[0, 1],
    }


def f1_of_many(prediction: Any) -> dict[str, float]:
    from sklearn.metrics import f1_score

    chosen = 1 / (1 + np.exp(-prediction.predictions)) >= 0.5
    return {
        f"f1_{average}": f1_score(prediction.label_ids, chosen, average=average, zero_division=0)
        for average in ("micro", "macro")
    }


def with_topics(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row's label: which of three words its text has, none to all."""
    return [{**row, "label": [word for word in TOPICS if word in row["text"].split()]} for row in rows]


TOPICS = ["ada", "curie", "noether"]


@pytest.mark.parametrize(
    ("kind", "task", "stage", "metrics"),
    [
        ("mrpc", {"text_columns": ["sentence1", "sentence2"]}, 3, accuracy_and_f1),
        ("stsb", {"glue": "stsb"}, 3, correlations),
        ("topics", {"problem_type": "multi_label_classification"}, 0, f1_of_many),
    ],
    ids=["one label", "a number", "several labels"],
)
def test_in_small_step_by_step(
    shared_ray: Any,
    nlp_data: Path,
    tmp_path: Path,
    kind: str,
    task: dict[str, Any],
    stage: int,
    metrics: Callable[[Any], dict[str, float]],
) -> None:
    """Real rows and BERT's tokenizer: losses, and all figures of the evaluation, against plain `Trainer` on the same
    batches.
    """
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    import raytrain_nlp
    from raytrain_nlp.data.plan import Plan, PlanSpec

    rows = {}
    for split, count in (("train", 320), ("validation", 101)):
        source = (
            write_rows(tmp_path / "texts", count, seed=count)
            if kind == "topics"
            else nlp_data / kind / f"{split}.jsonl"
        )
        rows[split] = [json.loads(line) for line in source.read_text().splitlines()[:count]]
        rows[split] = with_topics(rows[split]) if kind == "topics" else rows[split]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[split]))
    columns = ["text"] if kind == "topics" else ["sentence1", "sentence2"]
    head = {
        "mrpc": {"num_labels": 2},
        "stsb": {"num_labels": 1, "problem_type": "regression"},
        "topics": {"num_labels": 3, "problem_type": "multi_label_classification"},
    }
    tokenizer = AutoTokenizer.from_pretrained(nlp_data.parent / "tokenizers" / "bert-base-uncased")
    config = AutoConfig.for_model(**{**TINY, "max_position_embeddings": 128}, vocab_size=len(tokenizer), **head[kind])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    job = tiny_job(
        tmp_path,
        kind,
        model={"name_or_path": str(tmp_path / "model"), "config": None, "tokenizer": None},
        data={"validation": str(tmp_path / "validation.jsonl"), "max_length": 128},
        deepspeed={"zero_stage": stage},
        training={"save_strategy": "no"},
    )
    job["task"] = {"type": "text-classification", **task}
    result = raytrain_nlp.train(job)

    def label(value: Any) -> Any:
        return [float(word in value) for word in TOPICS] if kind == "topics" else value

    def encoded(split: str) -> list[dict[str, Any]]:
        return [
            {
                **tokenizer(*[row[name] for name in columns], truncation=True, max_length=128),
                "label": label(row["label"]),
            }
            for row in rows[split]
        ]

    examples = encoded("train")
    plan = Plan(PlanSpec(320, 7, "group_by_length", 16), np.array([len(example["input_ids"]) for example in examples]))
    logged: list[float] = []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                logged.append(logs["loss"])

    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"),
        args=TrainingArguments(
            output_dir=str(tmp_path / "plain"),
            per_device_train_batch_size=16,
            num_train_epochs=1,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),  # fmt: skip
        train_dataset=[examples[row] for step in range(plan.steps_per_epoch) for row in plan.at(step)[2]],
        eval_dataset=encoded("validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics,
        callbacks=[Log()],
    )
    trainer.train()
    np.testing.assert_allclose(losses(Path(result.run_dir)), logged, atol=1e-4, rtol=0)
    assert result.metrics["eval_samples"] == 101
    assert result.metrics["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-4)
    exported = AutoModelForSequenceClassification.from_pretrained(result.model_dir)
    # figures of the exported weights: a rank correlation jumps where two nearly equal predictions change places
    plain = Trainer(
        model=exported,
        args=trainer.args,
        eval_dataset=trainer.eval_dataset,
        data_collator=trainer.data_collator,
        compute_metrics=metrics,
    )
    expected = plain.evaluate()
    names = ["eval_loss", *(f"eval_{name}" for name in metrics(plain.predict(plain.eval_dataset)))]
    assert {name: result.metrics[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, abs=1e-4
    )
    assert (result.majority_accuracy is None) == (kind != "mrpc")
    assert exported.config.problem_type == (head[kind].get("problem_type") or "single_label_classification")
    assert exported.config.num_labels == head[kind]["num_labels"] and (
        kind != "topics" or list(exported.config.id2label.values()) == TOPICS
    )


@pytest.mark.parametrize(("training", "tolerance"), [({}, 1e-4), ({"bf16": True}, 0.02)])
def test_offload_and_gradient_checkpointing_change_no_loss(
    shared_ray: Any, setting: Path, truth: Any, training: dict[str, Any], tolerance: float
) -> None:
    """ZeRO-3 with optimizer and parameters in CPU memory and activations recomputed; bf16 to its own precision."""
    import raytrain_nlp

    job = job_of(setting, 3, 1, gradient_checkpointing=True, **training)
    job |= {
        "name": f"{job['name']}-offload",
        "deepspeed": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
    }
    result = raytrain_nlp.train(job)
    np.testing.assert_allclose(losses(Path(result.run_dir)), truth[0], atol=tolerance, rtol=0)
