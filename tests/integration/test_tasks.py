"""Each task against Hugging Face's own `Trainer` and collator on the same global batches, with two workers and
ZeRO-3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import losses, tiny_job, write_rows

QUICK = pytest.mark.quick

STEPS, ROWS, HELD_OUT = 20, 400, 101
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TAGGER = {**BERT, "num_labels": 3}
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
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "tie_word_embeddings": True,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "tie_word_embeddings": True,
}
NUMBERS = dict(zip("0123456789", "null eins zwei drei vier fünf sechs sieben acht neun".split(), strict=True))


def write_pairs(path: Path, count: int, seed: int, make: Callable[[str, str], dict[str, Any]]) -> Path:
    """Digits and the same digits in German words; short and long ones."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for length in random.integers(1, 9, size=count):
            digits = "".join(random.choice(list(NUMBERS), size=length))
            file.write(
                json.dumps(make(" ".join(digits), " ".join(NUMBERS[digit] for digit in digits)), ensure_ascii=False)
                + "\n"
            )
    return path


def train(folder: Path, task: dict[str, Any], **sections: Any) -> Any:
    """20 steps of 16 rows from the model of FOLDER/start."""
    import raytrain_nlp

    job = tiny_job(
        folder, "run", model={"name_or_path": str(folder / "start"), "config": None, "tokenizer": None},
        data={"validation": str(folder / "validation.jsonl"), "max_length": 32, "max_validation_rows": HELD_OUT},
        deepspeed={"zero_stage": 3}, training={"max_steps": STEPS, "save_strategy": "no"},
    )  # fmt: skip
    for key, value in sections.items():
        job[key] = {**job.get(key, {}), **value}
    return raytrain_nlp.train({**job, "task": task})


def write_start(folder: Path, auto_model: str, kind: str, config: dict[str, Any], texts: list[str]) -> tuple[Any, Any]:
    """A tokenizer trained on the texts and a model with weights of its own, saved for both sides in FOLDER/start."""
    import transformers

    from raytrain_nlp.config.model import TokenizerTraining
    from raytrain_nlp.modeling.tokenizer import train_tokenizer

    cached = train_tokenizer(texts, TokenizerTraining(vocab_size=400), kind, "key", folder / "tokenizers", None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(cached)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    ids |= (
        {"decoder_start_token_id": ids["pad_token_id"], "forced_eos_token_id": ids["eos_token_id"]}
        if kind == "seq2seq"
        else {}
    )
    transformers.set_seed(3)
    model = getattr(transformers, auto_model).from_config(
        transformers.AutoConfig.for_model(**config, vocab_size=len(tokenizer), **ids)
    )
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    return tokenizer, model


def plain_losses(folder: Path, model: Any, batches: list[list[dict[str, Any]]], collator: Any) -> list[float]:
    """Losses of the same global batches by `Trainer` in one process."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    logged: list[float] = []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                logged.append(logs["loss"])

    arguments = TrainingArguments(
        output_dir=str(folder / "plain"),
        per_device_train_batch_size=len(batches[0]),
        max_steps=len(batches),
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=[row for batch in batches for row in batch],
        data_collator=collator,
        callbacks=[Log()],
    ).train()
    return logged


def batches_of(lengths: list[int], strategy: str) -> list[np.ndarray]:
    from raytrain_nlp.data.plan import Plan, PlanSpec

    plan = Plan(PlanSpec(len(lengths), 7, strategy, 16), np.array(lengths))
    return [plan.at(step)[2] for step in range(STEPS)]


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=QUICK), 2])
def test_causal_lm(shared_ray: Any, tmp_path: Path, accumulation: int) -> None:
    """Blocks as `group_texts` makes them of all documents at once; perplexity and accuracy by hand from the exported
    model.
    """
    import torch
    from transformers import AutoModelForCausalLM, default_data_collator

    write_rows(tmp_path / "train.jsonl", 640)
    write_rows(tmp_path / "validation.jsonl", HELD_OUT, seed=1)
    task = {"type": "causal-lm"}
    tokenizer, model = write_start(
        tmp_path, "AutoModelForCausalLM", "decoder", LLAMA, texts_of(tmp_path / "train.jsonl")
    )
    size = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    result = train(tmp_path, task, training=size)

    def blocks_of(path: Path) -> list[list[int]]:
        stream = [token for row in tokenizer(texts_of(path))["input_ids"] for token in row]
        return [stream[i : i + 32] for i in range(0, len(stream), 32)]

    blocks = blocks_of(tmp_path / "train.jsonl")
    rows = [{"input_ids": block, "labels": block, "attention_mask": [1] * len(block)} for block in blocks]
    assert result.rows["train"] == len(blocks)
    batches = [[rows[i] for i in batch] for batch in batches_of([len(block) for block in blocks], "random")]
    np.testing.assert_allclose(
        losses(Path(result.run_dir)),
        plain_losses(tmp_path, model, batches, _padded(default_data_collator)),
        atol=1e-4,
        rtol=0,
    )
    exported = AutoModelForCausalLM.from_pretrained(result.model_dir)
    loss = right = count = 0
    for block in blocks_of(tmp_path / "validation.jsonl"):
        ids = torch.tensor([block])
        with torch.no_grad():
            logits = exported(ids).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        right += (logits.argmax(-1) == ids[0, 1:]).sum().item()
        count += len(block) - 1
    assert result.metrics["eval_loss"] == pytest.approx(loss / count, abs=1e-4)
    assert result.metrics["eval_perplexity"] == pytest.approx(np.exp(loss / count), rel=1e-3)
    assert result.metrics["eval_accuracy"] == pytest.approx(right / count, abs=1e-6)


def _padded(collator: Any) -> Any:
    """The last block of the stream is shorter: padded as `DataCollatorForLanguageModeling` would."""

    def collate(rows: list[dict[str, Any]]) -> Any:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return collator([{key: row[key] + [fill[key]] * (width - len(row[key])) for key in fill} for row in rows])

    return collate


@QUICK
def test_packed_documents_are_learned_as_if_alone(shared_ray: Any, tmp_path: Path) -> None:
    """best_fit: the loss of the first step is that of the documents one by one, and so is the evaluation's."""
    import torch

    write_rows(tmp_path / "train.jsonl", 60)
    write_rows(tmp_path / "validation.jsonl", 40, seed=1)
    task = {"type": "causal-lm", "packing": "best_fit", "block_size": 64}
    tokenizer, model = write_start(
        tmp_path, "AutoModelForCausalLM", "decoder", LLAMA, texts_of(tmp_path / "train.jsonl")
    )
    first = train(tmp_path, task, training={"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 50})

    def mean_loss(path: Path) -> float:
        total = count = 0
        for text in texts_of(path):
            ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return total / count

    assert first.rows["train"] < 30  # two and more documents a block
    assert losses(Path(first.run_dir)) == pytest.approx([mean_loss(tmp_path / "train.jsonl")], abs=1e-4)
    assert first.metrics["eval_loss"] == pytest.approx(mean_loss(tmp_path / "validation.jsonl"), abs=1e-4)


XLNET = {"model_type": "xlnet", "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0}


@QUICK
@pytest.mark.parametrize(
    ("kind", "auto_model", "config", "zero_stage"),
    [
        ("masked-lm", "AutoModelForMaskedLM", BERT, 3),
        ("permutation-lm", "AutoModelForCausalLM", XLNET, 0),
    ],
    ids=["masked", "permutation"],
)
def test_masked_lm(
    shared_ray: Any, tmp_path: Path, kind: str, auto_model: str, config: dict[str, Any], zero_stage: int
) -> None:
    """The masks are the task's own (a unit test holds them); losses, loss and accuracy of the evaluation are Hugging
    Face's.
    """
    import torch
    import transformers
    from pydantic import TypeAdapter

    from raytrain_nlp.config.tasks import TaskConfig
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.tasks.base import CollateContext, Lengths, Place

    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "validation.jsonl", HELD_OUT, seed=1)
    task = {"type": kind, "line_by_line": True}
    tokenizer, model = write_start(tmp_path, auto_model, "encoder", config, texts_of(tmp_path / "train.jsonl"))
    result = train(tmp_path, task, deepspeed={"zero_stage": zero_stage})
    built = build_task(TypeAdapter(TaskConfig).validate_python(task))
    context = CollateContext(tokenizer.pad_token_id, 0, "right", [], [], tokenizer.mask_token_id, len(tokenizer))

    def batch_of(columns: dict[str, list], rows: np.ndarray, seed: int, epoch: int) -> dict[str, Any]:
        """With what `DataCollatorForPermutationLanguageModeling` adds: each token is to be predicted in its place."""
        picked = {name: [np.array(values[i]) for i in rows] for name, values in columns.items()}
        made = built.collate(picked, context, Place(seed, epoch, rows))
        tensors = {name: torch.tensor(values).long() for name, values in made.items()}
        if "perm_mask" in tensors:
            size = tensors["perm_mask"].shape
            tensors["target_mapping"] = torch.eye(size[1]).expand(size)
        return tensors

    columns = built.encode([{"text": text} for text in texts_of(tmp_path / "train.jsonl")], tokenizer, Lengths(32))
    batches = []
    for rows in batches_of([len(row) for row in columns["input_ids"]], "group_by_length"):
        made = batch_of(columns, rows, 7, 0)
        batches.append([{name: values[i] for name, values in made.items()} for i in range(len(rows))])
    expected = plain_losses(tmp_path, model, batches, transformers.default_data_collator)
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)
    exported = getattr(transformers, auto_model).from_pretrained(result.model_dir)
    columns = built.encode([{"text": text} for text in texts_of(tmp_path / "validation.jsonl")], tokenizer, Lengths(32))
    made = batch_of(columns, np.arange(HELD_OUT), 0, 0)
    with torch.no_grad():
        output = exported(**made)
    asked = made["labels"] != -100
    assert result.metrics["eval_loss"] == pytest.approx(output.loss.item(), abs=1e-4)
    assert result.metrics["eval_perplexity"] == pytest.approx(np.exp(output.loss.item()), rel=1e-3)
    assert result.metrics["eval_accuracy"] == pytest.approx(
        (output.logits.argmax(-1) == made["labels"])[asked].float().mean().item(), abs=1e-6
    )


@QUICK
def test_multiple_choice(shared_ray: Any, tmp_path: Path) -> None:
    """Which of three words is the given digit? Losses with `DataCollatorForMultipleChoice`; loss and accuracy of the
    evaluation by the exported model, row by row.
    """
    import torch
    from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

    random = np.random.default_rng(5)
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, count in (("train", ROWS), ("validation", HELD_OUT)):
        rows[split] = []
        for _ in range(count):
            words = random.choice(list(NUMBERS.values()), size=3, replace=False).tolist()
            label, filler = int(random.integers(3)), " ".join(["und"] * int(random.integers(1, 8)))
            digit = next(key for key, word in NUMBERS.items() if word == words[label])
            endings = {f"e{number}": f"{word} {filler}" for number, word in enumerate(words)}
            rows[split].append({"digit": digit, **endings, "label": label})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[split]))
    task = {"type": "multiple-choice", "context_column": "digit", "ending_columns": ["e0", "e1", "e2"]}
    texts = [*NUMBERS, *NUMBERS.values(), "und"]
    tokenizer, model = write_start(tmp_path, "AutoModelForMultipleChoice", "encoder", BERT, texts)
    result = train(tmp_path, task)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer([row["digit"]] * 3, [row[f"e{number}"] for number in range(3)], truncation=True, max_length=32)
        return {**made, "labels": row["label"]}

    encoded = [encode(row) for row in rows["train"]]
    lengths = [3 * max(len(ids) for ids in row["input_ids"]) for row in encoded]
    batches = [[encoded[i] for i in batch] for batch in batches_of(lengths, "group_by_length")]
    expected = plain_losses(tmp_path, model, batches, DataCollatorForMultipleChoice(tokenizer))
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)
    exported = AutoModelForMultipleChoice.from_pretrained(result.model_dir)
    with torch.no_grad():
        outputs = [exported(**DataCollatorForMultipleChoice(tokenizer)([encode(row)])) for row in rows["validation"]]
    right = [
        int(output.logits.argmax()) == row["label"] for output, row in zip(outputs, rows["validation"], strict=True)
    ]
    assert result.metrics["eval_loss"] == pytest.approx(np.mean([output.loss.item() for output in outputs]), abs=1e-4)
    assert result.metrics["eval_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def write_anchors(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Digits and the German words for them, with a wrong word; some rows stand twice. A score says how many digits are
    right.
    """
    random, rows = np.random.default_rng(seed), []
    for length in random.integers(1, 9, size=count):
        digits = random.integers(0, 10, size=length)
        wrong = np.where(random.random(length) < 0.5, random.integers(0, 10, size=length), digits)
        row: dict[str, Any] = {"anchor": " ".join(map(str, digits)), "score": float((wrong == digits).mean())}
        row |= {"positive": _spelt(digits), "negative": _spelt(wrong)}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _spelt(digits: Any) -> str:
    return " ".join(NUMBERS[str(digit)] for digit in digits)


def losses_of_sentence_transformers(
    folder: Path, columns: list[str], batches: list[list[dict[str, Any]]], loss: Callable[[Any], Any]
) -> tuple[list[float], Any]:
    """Losses of the same global batches by its trainer in one process, and the model it has trained."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from torch.utils.data import BatchSampler, SequentialSampler

    body = Transformer(str(folder / "start"), max_seq_length=32)
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), "mean")], device="cpu")
    rows = [row for batch in batches for row in batch]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "plain"), per_device_train_batch_size=len(batches[0]), max_steps=len(batches),
        learning_rate=1e-3, logging_steps=1, save_strategy="no", use_cpu=True, report_to=[], disable_tqdm=True,
        batch_sampler=lambda dataset, batch_size, **kwargs: BatchSampler(SequentialSampler(dataset), batch_size, False),
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, loss=loss(model),
        train_dataset=Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model.eval()


KINDS_OF_PAIRS: dict[str, tuple[dict[str, Any], list[str], str, dict[str, Any]]] = {
    "pairs": ({"text_columns": ["anchor", "positive"]}, ["anchor", "positive"], "MultipleNegativesRankingLoss", {}),
    "triplets": (
        {"text_columns": ["anchor", "positive", "negative"], "symmetric": True, "scale": 10},
        ["anchor", "positive", "negative"],
        "MultipleNegativesRankingLoss",
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction", "scale": 10},
    ),
    "cosent": (
        {"text_columns": ["anchor", "negative"], "score_column": "score"},
        ["anchor", "negative", "score"],
        "CoSENTLoss",
        {},
    ),
    "cosines": (
        {"text_columns": ["anchor", "negative"], "score_column": "score", "loss": "cosine-similarity"},
        ["anchor", "negative", "score"],
        "CosineSimilarityLoss",
        {},
    ),
}
"""Kind -> section, columns, loss of sentence-transformers, its arguments."""


@pytest.mark.parametrize("zero_stage", [3])
@pytest.mark.parametrize("kind", [pytest.param("pairs", marks=QUICK)])
@pytest.mark.parametrize("accumulation", [1])
def test_sentence_similarity(shared_ray: Any, tmp_path: Path, kind: str, zero_stage: int, accumulation: int) -> None:
    """Losses with SentenceTransformerTrainer on the whole global batch in one process; figures with its evaluators on
    the vectors of the exported model, which it loads.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import evaluation
    from sentence_transformers.sentence_transformer import losses as theirs
    from sentence_transformers.util import cos_sim

    section, columns, name, arguments = KINDS_OF_PAIRS[kind]
    rows = {
        split: write_anchors(tmp_path / f"{split}.jsonl", count, count)
        for split, count in (("train", ROWS), ("validation", HELD_OUT))
    }
    tokenizer, _ = write_start(tmp_path, "AutoModel", "encoder", BERT, [*NUMBERS, *NUMBERS.values()])
    task = {"type": "sentence-similarity", **section}
    size = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    result = train(tmp_path, task, deepspeed={"zero_stage": zero_stage}, training=size)

    lengths = [
        sum(len(tokenizer(row[column])["input_ids"]) for column in task["text_columns"]) for row in rows["train"]
    ]
    batches = [[rows["train"][i] for i in batch] for batch in batches_of(lengths, "group_by_length")]
    expected, _ = losses_of_sentence_transformers(
        tmp_path, columns, batches, lambda model: getattr(theirs, name)(model, **arguments)
    )
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)

    model, held_out = SentenceTransformer(str(result.model_dir), device="cpu"), rows["validation"]
    if "score" in columns:
        pairs = ([row[column] for row in held_out] for column in (*task["text_columns"], "score"))
        figures = evaluation.EmbeddingSimilarityEvaluator(*pairs, similarity_fn_names=["cosine"])(model)
        assert figures.keys() == {"pearson_cosine", "spearman_cosine"}
    else:
        shown = dict.fromkeys(row[column] for row in held_out for column in task["text_columns"][1:])
        corpus = {f"d{place:05d}": text for place, text in enumerate(shown)}
        names = {text: name for name, text in corpus.items()}
        right: dict[str, set[str]] = {}
        for row in held_out:
            right.setdefault(row["anchor"], set()).add(names[row["positive"]])
        queries = {text: text for text in right}
        figures = evaluation.InformationRetrievalEvaluator(queries, corpus, right, score_functions={"cosine": cos_sim})(
            model
        )
    found = {key: result.metrics[f"eval_{key}"] for key in figures if f"eval_{key}" in result.metrics}
    assert found == pytest.approx({key: float(figures[key]) for key in found}, abs=1e-5) and len(found) in (2, 8)
    parts = np.array_split(np.arange(HELD_OUT), round(HELD_OUT / 16))
    loss = getattr(theirs, name)(model, **arguments)
    vectors = [torch_of(model.encode([row[column] for row in held_out])) for column in task["text_columns"]]
    scores = torch_of([row["score"] for row in held_out])
    values = [float(loss.compute_loss_from_embeddings([v[part] for v in vectors], scores[part])) for part in parts]
    assert result.metrics["eval_loss"] == pytest.approx(np.average(values, weights=list(map(len, parts))), abs=1e-4)


def torch_of(values: Any) -> Any:
    import torch

    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def write_tagged(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """German number words in sentences, even ones as `EVEN`, two of a kind in a row as one entity."""
    random, rows = np.random.default_rng(seed), []
    for length in random.integers(1, 9, size=count):
        digits = random.integers(0, 10, size=length).tolist()
        tags = ["O" if digit % 2 else "B-EVEN" for digit in digits]
        tags = ["I-EVEN" if place and tag != "O" != tags[place - 1] else tag for place, tag in enumerate(tags)]
        words = [NUMBERS[str(digit)] if digit != 7 else "\x07" for digit in digits]
        rows.append({"tokens": words, "ner_tags": tags})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@QUICK
@pytest.mark.parametrize("zero_stage", [3])
def test_token_classification(shared_ray: Any, tmp_path: Path, zero_stage: int) -> None:
    """Losses with `DataCollatorForTokenClassification`, whose means are over tagged words; figures by seqeval, and
    predictions, of the exported model.
    """
    import torch
    from seqeval.metrics import accuracy_score, f1_score
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

    rows = {
        split: write_tagged(tmp_path / f"{split}.jsonl", count, count)
        for split, count in (("train", ROWS), ("validation", HELD_OUT))
    }
    texts = [" ".join(NUMBERS.values())] * 3
    tokenizer, model = write_start(tmp_path, "AutoModelForTokenClassification", "encoder", TAGGER, texts)
    task = {"type": "token-classification"}
    result = train(tmp_path, task, deepspeed={"zero_stage": zero_stage})
    labels = ["B-EVEN", "I-EVEN", "O"]

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenizer(row["tokens"], truncation=True, max_length=32, is_split_into_words=True)
        words = made.word_ids()
        first = [word is not None and word != before for word, before in zip(words, [None, *words])]
        tags = [labels.index(row["ner_tags"][word]) if use else -100 for word, use in zip(words, first)]
        return {**made, "labels": tags}

    encoded = [encode(row) for row in rows["train"]]
    lengths = [len(row["input_ids"]) for row in encoded]
    batches = [[encoded[i] for i in batch] for batch in batches_of(lengths, "group_by_length")]
    expected = plain_losses(tmp_path, model, batches, DataCollatorForTokenClassification(tokenizer))
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)
    exported = AutoModelForTokenClassification.from_pretrained(result.model_dir)
    assert [exported.config.id2label[number] for number in range(3)] == labels
    batch = DataCollatorForTokenClassification(tokenizer)([encode(row) for row in rows["validation"]])
    with torch.no_grad():
        output = exported(**batch)
    best = output.logits.argmax(-1)
    scored = [
        [(labels[tag], labels[guess]) for tag, guess in zip(wanted, found) if tag != -100]
        for wanted, found in zip(batch["labels"].tolist(), best.tolist())
    ]
    truth, guess = ([[pair[side] for pair in row] for row in scored] for side in (0, 1))
    assert result.metrics["eval_loss"] == pytest.approx(output.loss.item(), abs=1e-4)
    assert result.metrics["eval_f1"] == pytest.approx(f1_score(truth, guess), abs=1e-6)
    assert result.metrics["eval_accuracy"] == pytest.approx(accuracy_score(truth, guess), abs=1e-6)
    assert result.metrics["eval_samples"] == HELD_OUT


@pytest.mark.parametrize("stage", [pytest.param(0, marks=QUICK), 3], ids=["zero0", "zero3"])
def test_question_answering(shared_ray: Any, tmp_path: Path, stage: int) -> None:
    """Which word follows the digit? 101 contexts of many windows, each question answered once: losses of features as
    run_qa.py makes them; loss and figures of the evaluation by the exported model, feature by feature.
    """
    import torch
    from squad_truth import answer_of, features_of
    from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

    from raytrain_nlp.data.plan import Plan, PlanSpec

    random, rows, many = np.random.default_rng(5), {}, 2 * HELD_OUT
    for split, count in (("train", many), ("validation", HELD_OUT)):
        rows[split] = []
        for _ in range(count):
            digits = random.choice(list(NUMBERS), size=10, replace=False).tolist()
            words = [word for digit in digits for word in (digit, NUMBERS[digit], *["und"] * random.integers(1, 5))]
            context, digit = " ".join(words), digits[int(random.integers(10))]
            start = context.index(f"{digit} {NUMBERS[digit]}") + 2
            answers = {"text": [NUMBERS[digit]], "answer_start": [start]}
            rows[split].append({"question": digit, "context": context, "answers": answers})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[split]))
    texts = [*NUMBERS, *NUMBERS.values(), "und"]
    tokenizer, model = write_start(tmp_path, "AutoModelForQuestionAnswering", "encoder", BERT, texts)
    task = {"type": "question-answering", "doc_stride": 8, "max_answer_length": 3}
    result = train(tmp_path, task, deepspeed={"zero_stage": stage})

    features = {split: [features_of(row, tokenizer, 32, 8) for row in part] for split, part in rows.items()}
    counts = {split: sum(map(len, part)) for split, part in features.items()}
    assert result.rows == {"train": many, "validation": HELD_OUT} and result.features == counts
    assert counts["validation"] > 2 * HELD_OUT and result.metrics["eval_samples"] == HELD_OUT
    assert result.metrics["eval_features"] == counts["validation"]
    taken = ("input_ids", "token_type_ids", "start_positions", "end_positions")
    encoded, held_out = (
        [{name: feature[name] for name in taken} for part in features[split] for feature in part]
        for split in ("train", "validation")
    )
    lengths = [len(row["input_ids"]) for row in encoded]
    batches = [[encoded[i] for i in batch] for batch in batches_of(lengths, "group_by_length")]
    expected = plain_losses(tmp_path, model, batches, DataCollatorWithPadding(tokenizer))
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)
    exported = AutoModelForQuestionAnswering.from_pretrained(result.model_dir).eval()
    found = [
        answer_of(row, part, exported, 3) for row, part in zip(rows["validation"], features["validation"], strict=True)
    ]
    right = [one["prediction"] == row["answers"]["text"][0] for one, row in zip(found, rows["validation"], strict=True)]
    assert result.metrics["eval_exact_match"] == pytest.approx(100 * np.mean(right))
    plan = Plan(
        PlanSpec(len(held_out), 0, "group_by_length", 16), np.array([len(row["input_ids"]) for row in held_out])
    )
    total = 0.0  # the loss of a feature is of all positions in its batch, padding among them
    for step in range(plan.steps_per_epoch):
        batch = [held_out[i] for i in plan.at(step)[2]]
        with torch.no_grad():
            total += exported(**DataCollatorWithPadding(tokenizer)(batch)).loss.item() * len(batch)
    assert result.metrics["eval_loss"] == pytest.approx(total / len(held_out), abs=1e-4)


@pytest.mark.parametrize(("kind", "config"), [pytest.param("translation", BART, marks=QUICK), ("summarization", T5)])
def test_seq2seq(shared_ray: Any, tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    """Losses; 101 generated rows equal to those of the exported model alone; figures by the standard library on these
    texts.
    """
    from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

    nested = kind == "translation"
    make = (lambda a, b: {"translation": {"en": a, "de": b}}) if nested else (lambda a, b: {"text": a, "summary": b})
    for split, count in (("train", ROWS), ("validation", HELD_OUT)):
        write_pairs(tmp_path / f"{split}.jsonl", count, count, make)
    task = {
        "type": kind,
        "source_prefix": "say: ",
        "max_target_length": 24,
        **({"source_lang": "en", "target_lang": "de"} if nested else {}),
    }
    texts = [*NUMBERS, *NUMBERS.values(), "say: "]
    tokenizer, model = write_start(tmp_path, "AutoModelForSeq2SeqLM", "seq2seq", config, texts)
    result = train(tmp_path, task, training={"generation_num_beams": 1})

    def encoded(split: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        pairs = [
            (row["translation"]["en"], row["translation"]["de"]) if nested else (row["text"], row["summary"])
            for row in rows
        ]
        sources = [tokenizer("say: " + source, truncation=True, max_length=32) for source, _ in pairs]
        return [
            {**row, "labels": tokenizer(text_target=b, max_length=24, truncation=True)["input_ids"]}
            for row, (_, b) in zip(sources, pairs, strict=True)
        ]

    rows = [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in encoded("train")]
    batches = [
        [rows[i] for i in batch] for batch in batches_of([len(row["input_ids"]) for row in rows], "group_by_length")
    ]
    expected = plain_losses(tmp_path, model, batches, DataCollatorForSeq2Seq(tokenizer, model))
    np.testing.assert_allclose(losses(Path(result.run_dir)), expected, atol=1e-4, rtol=0)
    exported = AutoModelForSeq2SeqLM.from_pretrained(result.model_dir).eval()
    pairs = [
        json.loads(line) for line in (Path(result.run_dir) / "generated_predictions.jsonl").read_text().splitlines()
    ]
    import torch

    alone = []
    for row in encoded("validation"):
        ids = exported.generate(input_ids=torch.tensor([row["input_ids"]]), max_length=24, num_beams=1, do_sample=False)
        alone.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    assert len(pairs) == HELD_OUT and [pair["prediction"] for pair in pairs] == alone
    references = [pair["reference"] for pair in pairs]
    if nested:
        import sacrebleu

        assert result.metrics["eval_bleu"] == pytest.approx(sacrebleu.corpus_bleu(alone, [references]).score)
        assert result.metrics["eval_chrf"] == pytest.approx(sacrebleu.corpus_chrf(alone, [references]).score)
    else:
        from rouge_score.rouge_scorer import RougeScorer

        scores = [
            RougeScorer(["rougeL"], use_stemmer=True).score(truth, guess)["rougeL"].fmeasure
            for truth, guess in zip(references, alone, strict=True)
        ]
        assert result.metrics["eval_rougeL"] == pytest.approx(100 * np.mean(scores))
