"""Sentence similarity: its section, its rows, how they are read and laid out, and what its files tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertConfig

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.export import find_files_beside, write_model
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import train_tokenizer
from raytrain_nlp.planning.models import check_model
from raytrain_nlp.planning.resolve import build_context
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.similarity.modules import module_files
from raytrain_nlp.tasks.similarity.sentence_similarity import SentenceSimilarityTask
from raytrain_nlp.tasks.similarity.vectors import apply_vectors

WORDS = "ada bell curie darwin euler fermi gauss hopper".split()
LONGEST = 9


def section(**keys: Any) -> SentenceSimilarity:
    return SentenceSimilarity(type="sentence-similarity", **keys)


CONFIG = section(text_columns=["anchor", "positive", "negative"], mask_duplicates=True, query_prompt="ada: ")
TASK = SentenceSimilarityTask(CONFIG)


def some_rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(5)

    def text(most: int) -> str:
        return " ".join(random.choice(WORDS, size=random.integers(1, most)))

    return [{"anchor": text(4), "positive": text(12), "negative": text(7)} for _ in range(count)]


ROWS = some_rows(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tokenizer."""
    return train_tokenizer(
        [*WORDS, ":"], TokenizerTraining(vocab_size=300), "encoder", "key", tmp_path_factory.mktemp("tokenizers"), None
    )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"text_columns": ["a"]}, "text_columns"),
        ({"text_columns": ["a", "b", "a"]}, "names a column twice"),
        ({"loss": "cosent"}, "needs rows with scores"),
        ({"score_column": "score", "loss": "multiple-negatives-ranking"}, "needs rows without scores"),
        ({"score_column": "score", "text_columns": ["a", "b", "c"]}, "a score is of two texts"),
        ({"score_column": "score", "symmetric": True}, "symmetric: is of the loss multiple-negatives-ranking alone"),
        ({"score_column": "score", "mask_duplicates": True}, "mask_duplicates: is of the loss"),
        ({"score_column": "s", "loss": "cosine-similarity", "similarity": "dot"}, "compares cosines"),
        ({"score_column": "score", "query_prompt": "q: "}, "have no prompts"),
        ({"scale": 0}, "scale"),
        ({"pooling": "median"}, "pooling"),
    ],
)
def test_sections_that_contradict_themselves(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        section(**keys)


def test_what_follows_from_a_score_column() -> None:
    assert section().objective == "multiple-negatives-ranking" and section().compares_rows
    scored = section(score_column="score")
    assert scored.objective == "cosent" and scored.text_columns == ["sentence1", "sentence2"]
    assert not section(score_column="score", loss="cosine-similarity").compares_rows


@pytest.mark.parametrize(
    ("keys", "row", "told"),
    [
        ({}, {"anchor": "a", "positive": "b"}, None),
        ({}, {"anchor": "a", "positive": " "}, "field 'positive' is empty"),
        ({}, {"anchor": "a"}, "field 'positive' is missing"),
        ({}, {"anchor": "a", "positive": ["b"]}, "field 'positive' is list, not text"),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b", "s": 4.5}, None),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b", "s": "4.5"}, None),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b"}, "field 's' is missing"),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b", "s": "high"}, "field 's' is 'high', not a number"),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b", "s": float("nan")}, "'nan', not a number"),
        ({"score_column": "s"}, {"sentence1": "a", "sentence2": "b", "s": True}, "'True', not a number"),
        (
            {"score_column": "s", "loss": "cosine-similarity"},
            {"sentence1": "a", "sentence2": "b", "s": 4.5},
            "a cosine is -1 to 1 (task.loss: cosent takes any numbers)",
        ),
    ],
)
def test_rows(keys: dict[str, Any], row: dict[str, Any], told: str | None) -> None:
    reason = SentenceSimilarityTask(section(**keys)).check_row(row)
    assert reason is None if told is None else reason is not None and told in reason


def opened(folder: Path, tokenizer: Any, tmp_path: Path) -> Split:
    """The rows of this file, prepared and read again as a run does."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prepare = PrepareSpec(CONFIG, str(folder), "key", TASK.lengths(LONGEST, "train"), 0.0)
    files = find_files([str(tmp_path / "rows.jsonl")], "data.train")
    store = prepare_tokens(files, prepare, tmp_path / "tokens", map, "data.train")
    plan = PlanSpec(len(ROWS), 1, global_batch_size=16)
    return Split(
        SplitSpec(str(store), None, None, None, plan, None, CONFIG, build_context(tokenizer, [], ModelFacts()))
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_column_by_column(folder: Path, tmp_path: Path, side: str) -> None:
    """As a tokenizer pads the texts of each side; tokens and padding are counted as they are."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    split = opened(folder, tokenizer, tmp_path)
    cut = {"truncation": True, "max_length": LONGEST, "padding": True, "return_tensors": "np"}
    seen: list[int] = []
    for step in range(split.plan.steps_per_epoch):
        for part in split.micro_batches(step, 2, 0, 1) + split.micro_batches(step, 2, 1, 1):
            rows = [ROWS[row] for row in part.rows]
            anchors = tokenizer([f"ada: {row['anchor']}" for row in rows], **cut)
            texts = [row[name] for row in rows for name in ("positive", "negative")]
            documents = tokenizer(texts, **cut)
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                assert part.tensors[name].tolist() == anchors[name].tolist()
                assert part.tensors[f"document_{name}"].reshape(len(texts), -1).tolist() == documents[name].tolist()
            assert part.padded_tokens == anchors["input_ids"].size + documents["input_ids"].size
            assert part.tokens == anchors["attention_mask"].sum() + documents["attention_mask"].sum()
            assert part.tensors["labels"].tolist() == [0.0] * len(rows) and part.weight == len(rows)
            numbers = part.tensors["text_ids"]
            for i, row in enumerate(rows):
                for j, other in enumerate(rows):
                    same = documents["input_ids"][2 * i].tolist() == documents["input_ids"][2 * j].tolist()
                    assert (numbers[i, 1] == numbers[j, 1]) == same, (row, other)
            seen += part.rows.tolist()
    assert sorted(seen) == list(range(len(ROWS)))


def test_rows_of_which_a_text_is_cut_are_counted(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [
        max(len(ids) for ids in tokenizer([f"ada: {row['anchor']}", row["positive"], row["negative"]])["input_ids"])
        for row in ROWS
    ]
    manifest = opened(folder, tokenizer, tmp_path).store.manifest
    assert sorted(int(n) for n, count in manifest["cut"].items() for _ in range(count)) == sorted(
        n for n in whole if n > LONGEST
    )


def test_texts_to_predict_and_their_prompts(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{"anchor": "bell", "text": "curie"}, {"text": "curie darwin"}]
    assert [TASK.check_input(row) for row in (*rows, {"anchor": "", "text": "a"}, {"other": "a"})] == [
        None,
        None,
        "field 'anchor' is empty",
        "field 'anchor' is missing",
    ]
    made = TASK.encode_inputs(rows, tokenizer, Lengths(LONGEST))
    assert made["input_ids"] == tokenizer(["ada: bell", "curie darwin"])["input_ids"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_export_is_a_model_of_sentence_transformers(
    folder: Path, tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    """Equal vectors of texts that are cut, too, with their prompts; and the plain model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = section(pooling=pooling, normalize=normalize, query_prompt="ada: ", similarity="dot")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    task = SentenceSimilarityTask(config)
    apply_vectors(model, config)
    beside = find_files_beside(task, model.config, LONGEST)
    write_model(model, model.state_dict(), tokenizer, tmp_path / "model", beside=beside)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for column, encode in (("anchor", theirs.encode_query), ("text", theirs.encode_document)):
        texts = [row["positive"] for row in ROWS]
        made = task.encode_inputs([{column: text} for text in texts], tokenizer, Lengths(LONGEST))
        inputs = task.collate_inputs(
            {name: list(map(np.array, rows)) for name, rows in made.items() if name != "full_length"},
            build_context(tokenizer, [], ModelFacts()),
        )
        tensors = {name: torch.as_tensor(array).long() for name, array in inputs.items()}
        with torch.no_grad():
            ours = np.array(
                [
                    row["embedding"]
                    for row in task.predictions(
                        {name: value.numpy() for name, value in task.outputs(model, tensors, tokenizer, {}).items()},
                        [],
                        None,
                    )
                ]
            )
        np.testing.assert_allclose(ours, encode(texts), atol=1e-6)
    assert theirs.similarity_fn_name == "dot" and theirs.max_seq_length == LONGEST
    plain = AutoModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_files_beside_of_a_model_with_fewer_positions() -> None:
    files = find_files_beside(SentenceSimilarityTask(section()), BertConfig(max_position_embeddings=32), 512)
    assert files["sentence_bert_config.json"]["max_seq_length"] == 32
    assert "2_Normalize/config.json" not in files
    assert module_files(section(normalize=True), 4, 8)["modules.json"][-1]["path"] == "2_Normalize"


@pytest.mark.parametrize(
    ("model_type", "works"),
    [("bert", True), ("mpnet", True), ("qwen3", True), ("t5", False), ("bart", False), ("vit", False)],
)
def test_models_of_texts(model_type: str, works: bool) -> None:
    job = load_job(
        {
            "task": {"type": "sentence-similarity"},
            "model": {"config": {"model_type": model_type}, "tokenizer": "train"},
            "data": {"train": "rows.jsonl"},
        }
    )
    if works:
        check_model(job)
    else:
        with pytest.raises(InputError, match="sentence-similarity"):
            check_model(job)


@pytest.mark.parametrize(("key", "value"), [("label_smoothing_factor", 0.1), ("prediction_loss_only", True)])
def test_arguments_that_the_loss_cannot_have(key: str, value: Any) -> None:
    values: dict[str, Any] = {
        "task": {"type": "sentence-similarity"},
        "model": {"config": {"model_type": "bert"}, "tokenizer": "train"},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
        "training": {key: value},
    }
    with pytest.raises(InputError, match=f"training.{key}"):
        load_job(values)
