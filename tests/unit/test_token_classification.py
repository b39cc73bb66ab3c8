"""Token classification: labels as run_ner.py aligns them, figures as seqeval alone gives them, words of raw text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForTokenClassification, AutoTokenizer, BertConfig, DataCollatorForTokenClassification

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import ModelConfig, TokenizerTraining
from raytrain_nlp.config.tasks.label_names import LabelNames
from raytrain_nlp.config.tasks.tagging import TokenClassification
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import cache_tokenizer, load_tokenizer, train_tokenizer
from raytrain_nlp.planning.labels import find_known_rows, find_labels
from raytrain_nlp.planning.metric_checks import check_objective
from raytrain_nlp.planning.resolve import build_context
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.tag_figures import entities_in
from raytrain_nlp.tasks.token_classification import TokenClassificationTask
from raytrain_nlp.tasks.truncation import FULL
from raytrain_nlp.tasks.words import split_words
from raytrain_nlp.trainer.metrics import Figures

WORDS = "ada bell curie darwin euler fermi gauss hopper".split()
TAGS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
NOTHING = "\x07"
"""A word of which a tokenizer of BERT's makes no token."""
LONGEST = 12


def config_of(**values: Any) -> TokenClassification:
    return TokenClassification(type="token-classification", **values)


def task_of(**values: Any) -> TokenClassificationTask:
    return TokenClassificationTask(config_of(**values))


def some_rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    rows = []
    for number in range(count):
        words = ["-".join(random.choice(WORDS, size=random.integers(1, 4))) for _ in range(random.integers(1, 9))]
        words[number % len(words)] = NOTHING if number % 5 == 4 and len(words) > 1 else words[number % len(words)]
        rows.append({"tokens": words, "ner_tags": [str(random.choice(TAGS)) for _ in words]})
    return rows


ROWS = some_rows(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tokenizer that drops control characters, as BERT's does."""
    from tokenizers import normalizers

    made = train_tokenizer(
        [*WORDS, "-"], TokenizerTraining(vocab_size=300), "encoder", "key", tmp_path_factory.mktemp("t"), None
    )
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.save_pretrained(target := tmp_path_factory.mktemp("tokenizer"))
    assert len(AutoTokenizer.from_pretrained(target)(NOTHING)["input_ids"]) == 2
    return target


@pytest.fixture(params=["right", "left"])
def tokenizer(folder: Path, request: pytest.FixtureRequest) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side=request.param)


def opened(rows: list[dict[str, Any]], folder: Path, tokenizer: Any, tmp_path: Path, **task: Any) -> Split:
    """Rows, prepared and read again as a run does."""
    config, built = config_of(**task), task_of(**task)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = PrepareSpec(config, str(folder), "key", built.lengths(LONGEST, "train"), 0.9)
    store = prepare_tokens(
        find_files([str(tmp_path / "rows.jsonl")], "data.train"), prepare, tmp_path / "tokens", map, "data.train"
    )
    context = build_context(tokenizer, TAGS, ModelFacts())
    plan = PlanSpec(TokenStore(store).num_rows, 1, global_batch_size=16)
    return Split(SplitSpec(str(store), None, None, None, plan, None, config, context))


def run_ner(row: dict[str, Any], tokenizer: Any, label_all_tokens: bool) -> dict[str, Any]:
    """A row as that script tokenizes and aligns it."""
    made = tokenizer(row["tokens"], truncation=True, max_length=LONGEST, is_split_into_words=True)
    inside = {tag: tag.replace("B-", "I-") for tag in TAGS}
    labels, before = [], None
    for word in made.word_ids():
        if word is None:
            labels.append(-100)
        elif word != before:
            labels.append(TAGS.index(row["ner_tags"][word]))
        else:
            labels.append(TAGS.index(inside[row["ner_tags"][word]]) if label_all_tokens else -100)
        before = word
    return {**made, "labels": labels}


@pytest.mark.parametrize("label_all_tokens", [False, True])
def test_batches_and_losses_are_those_of_run_ner(
    folder: Path, tokenizer: Any, tmp_path: Path, label_all_tokens: bool
) -> None:
    split = opened(ROWS, folder, tokenizer, tmp_path, label_all_tokens=label_all_tokens)
    torch.manual_seed(1)
    model = AutoModelForTokenClassification.from_config(
        BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=len(TAGS))
    ).eval()
    seen: list[int] = []
    for step in range(split.plan.steps_per_epoch):
        for part in split.micro_batches(step, 2, 1, 2) + split.micro_batches(step, 2, 0, 2):
            features = [run_ner(ROWS[row], tokenizer, label_all_tokens) for row in part.rows]
            truth = dict(DataCollatorForTokenClassification(tokenizer)(features))
            assert {name: array.tolist() for name, array in part.tensors.items()} == {
                name: tensor.tolist() for name, tensor in truth.items()
            }
            assert part.weight == int((truth["labels"] != -100).sum())
            tensors = {name: torch.as_tensor(array).long() for name, array in part.tensors.items()}
            assert torch.equal(model(**tensors).loss, model(**truth).loss)
            seen += part.rows.tolist()
    assert sorted(seen) == list(range(len(ROWS)))
    whole = [len(tokenizer(row["tokens"], is_split_into_words=True)["input_ids"]) for row in ROWS]
    assert split.store.manifest["cut"] and sum(split.store.manifest["cut"].values()) == sum(n > LONGEST for n in whole)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"tokens": ["", "b"]}, None),
        ({"tokens": "a b"}, "field 'tokens' is str, not a list of words"),
        ({"tokens": None}, "field 'tokens' is null, not a list of words"),
        ({"tokens": []}, "field 'tokens' has no words"),
        ({"tokens": ["a", 3]}, "field 'tokens' holds int where a word should be (word 2)"),
        ({"tokens": ["a", None]}, "field 'tokens' holds null where a word should be (word 2)"),
        ({"ner_tags": None}, "field 'ner_tags' is null, not a list of tags"),
        ({"ner_tags": "O O"}, "field 'ner_tags' is str, not a list of tags"),
        ({"ner_tags": ["O"]}, "has 2 words in 'tokens' and 1 tags in 'ner_tags'"),
        ({"ner_tags": ["O", None]}, "field 'ner_tags' holds a tag that is null or empty (word 2)"),
        ({"ner_tags": ["", "O"]}, "field 'ner_tags' holds a tag that is null or empty (word 1)"),
        ({"ner_tags": [["O"], "O"]}, "field 'ner_tags' holds list where a tag should be (word 1)"),
        ({"ner_tags": ["O", 0.5]}, "field 'ner_tags' holds a tag that is float, not an integer or text"),
    ],
)
def test_which_rows_are_bad(change: dict[str, Any], reason: str | None) -> None:
    row = {"tokens": ["a", "b"], "ner_tags": ["O", "B-PER"]}
    found = task_of().check_row({**row, **change})
    assert found is None if reason is None else (found or "").startswith(reason)
    assert task_of().check_row({"tokens": ["a"]}) == "field 'ner_tags' is missing"


def test_tags_that_are_numbers_have_declared_names() -> None:
    task = task_of(label_names=["O", "B-PER"])
    row = {"tokens": ["a", "b"], "ner_tags": [1, 0]}
    assert task.check_row(row) is None
    assert task.check_row({**row, "ner_tags": [2, 0]}) == (
        "field 'ner_tags' has label '2', which is none of the names (O, B-PER) (word 1)"
    )
    assert task._stored == {1: "B-PER", 0: "O"}
    for names in (["O", "O"], ["1", 1.0], ["O"]):
        with pytest.raises(ValidationError):
            TypeAdapter(LabelNames).validate_python(names)
        with pytest.raises(ValidationError):
            config_of(label_names=names)
    assert TypeAdapter(LabelNames).validate_python([0, 1.0, "x"]) == ["0", "1", "x"]


def test_rows_of_which_nothing_becomes_a_token_are_left_out(folder: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:4], {"tokens": [NOTHING, NOTHING], "ner_tags": ["O", "B-PER"]}, *ROWS[4:8]]
    split = opened(rows, folder, AutoTokenizer.from_pretrained(folder), tmp_path)
    assert (split.store.num_rows, split.store.manifest["left_out"]) == (8, 1)
    told = (split.store.folder / "quarantine.jsonl").read_text()
    assert json.loads(told)["line"] == 5 and "no word of it becomes a token" in told
    assert [split.store.locate(row)[1] for row in range(8)] == [1, 2, 3, 4, 6, 7, 8, 9]


def job_of(**task: Any) -> Any:
    return load_job(
        {
            "name": "x",
            "task": {"type": "token-classification", **task},
            "model": {"config": {"model_type": "bert"}, "tokenizer": "train"},
            "data": {"train": "x"},
        }
    )


def test_classes_are_the_sorted_tags_and_others_are_told(folder: Path, tmp_path: Path) -> None:
    store = opened(ROWS, folder, AutoTokenizer.from_pretrained(folder), tmp_path).store
    assert find_labels(job_of(), store) == (TAGS, [])
    with pytest.raises(InputError, match="the tag 'B-LOC' is none of IOE2"):
        find_labels(job_of(tag_scheme="IOE2"), store)
    path, unseen = find_known_rows(store, TAGS[1:], 0.99)
    without = [row for row, values in enumerate(ROWS) if "B-LOC" not in values["ner_tags"]]
    assert path is not None and np.load(path).tolist() == without
    assert unseen[0]["reason"] == "label 'B-LOC' was never seen in training"


def test_tags_that_are_all_outside_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "ner_tags": ["O"] * len(row["tokens"])} for row in ROWS]
    store = opened(rows, folder, AutoTokenizer.from_pretrained(folder), tmp_path).store
    with pytest.raises(InputError, match=r"data.train: all tags of column 'ner_tags' are equal \('O'\)"):
        find_labels(job_of(), store)


def predicted(truth: list[list[str]], guess: list[list[str]], labels: list[str]) -> Any:
    """Arrays as an evaluation joins them: special tokens at both ends and padding behind are not scored."""
    width = max(map(len, truth)) + 2
    ids, best = np.full((2, len(truth), width), -100)
    for row, (wanted, found) in enumerate(zip(truth, guess, strict=True)):
        ids[row, 1 : len(wanted) + 1] = [labels.index(tag) for tag in wanted]
        best[row, : len(found) + 2] = [0, *(labels.index(tag) for tag in found), 1]
    return SimpleNamespace(predictions=(best, np.full(best.shape, 0.5, np.float32)), label_ids=ids)


def drawn(labels: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    random = np.random.default_rng(3)
    truth = [[str(tag) for tag in random.choice(labels, size=random.integers(1, 9))] for _ in range(60)]
    guess = [[tag if random.random() < 0.7 else str(random.choice(labels)) for tag in row] for row in truth]
    return truth, guess


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (TAGS, None),
        (TAGS, "IOB2"),
        (["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC"))], None),
        (["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC"))], "IOBES"),
        (["O", *(f"{letter}-PER" for letter in "BILU")], "BILOU"),
    ],
)
def test_figures_of_entities_are_seqevals(labels: list[str], scheme: str | None) -> None:
    from seqeval import metrics
    from seqeval import scheme as schemes

    truth, guess = drawn(labels)
    strict = {"mode": "strict", "scheme": getattr(schemes, scheme)} if scheme else {}
    task = task_of(tag_scheme=scheme, return_entity_level_metrics=True)
    prediction = predicted(truth, guess, labels)
    figures = task.build_metrics(labels, None)(prediction)
    assert figures["f1"] == figures["overall_f1"] == pytest.approx(metrics.f1_score(truth, guess, **strict))
    assert figures["precision"] == pytest.approx(metrics.precision_score(truth, guess, **strict))
    assert figures["recall"] == pytest.approx(metrics.recall_score(truth, guess, **strict))
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    report = metrics.classification_report(truth, guess, output_dict=True, **strict)
    assert figures["PER_f1"] == pytest.approx(report["PER"]["f1-score"]) and 0 < figures["PER_f1"] < 1
    assert figures["PER_number"] == report["PER"]["support"]
    assert set(figures) == set(task.metric_names(labels))
    assert task.build_report(prediction.predictions, prediction.label_ids, labels)["classes"]["PER"] == pytest.approx(
        report["PER"]
    )
    rows = list(task.score_rows(prediction.predictions, prediction.label_ids, labels, None))
    assert [(row["label"], row["prediction"]) for row in rows] == list(zip(truth, guess, strict=True))


@pytest.mark.filterwarnings("error")
def test_figures_of_tags_that_name_no_entities() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    labels = ["ADJ", "NOUN", "VERB"]
    truth, guess = drawn(labels)
    flat = [[tag for row in side for tag in row] for side in (truth, guess)]
    figures = task_of().build_metrics(labels, None)(predicted(truth, guess, labels))
    assert figures["accuracy"] == pytest.approx(accuracy_score(*flat))
    assert figures["f1"] == pytest.approx(f1_score(*flat, average="macro"))
    plain, chunked = (["LOC", "O", "PER"], {"LOC": "I-LOC", "O": "O", "PER": "I-PER"})
    truth, guess = drawn(plain)
    from seqeval.metrics import f1_score as of_entities

    named = [[[chunked[tag] for tag in row] for row in side] for side in (truth, guess)]
    assert task_of().build_metrics(plain, None)(predicted(truth, guess, plain))["f1"] == pytest.approx(
        of_entities(*named)
    )
    nothing = [["O", "O"]]
    figures = task_of().build_metrics(TAGS, None)(predicted(nothing, nothing, TAGS))
    assert figures == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}


def test_a_figure_of_a_type_may_choose_the_best_model() -> None:
    job = job_of(return_entity_level_metrics=True)
    assert check_objective(job, "eval_PER_f1", "x") == [] and check_objective(job, "PER_f1", "x", TAGS) == []
    assert check_objective(job, "eval_ORG_f1", "x", TAGS) and check_objective(job_of(), "eval_PER_f1", "x")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", None, "I-PER"], [("PER", 0, 1), ("PER", 3, 3)]),
        (["O", "B-LOC", "B-LOC"], [("LOC", 1, 1), ("LOC", 2, 2)]),
        (["U-X", "B-X", "L-X"], [("X", 0, 0), ("X", 1, 2)]),
        (["PER", "PER", "O", "LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
        (["NOUN", "NOUN", None], [("NOUN", 0, 0), ("NOUN", 1, 1)]),
        (["B", "I", "O", "B"], [("_", 0, 1), ("_", 3, 3)]),
    ],
)
def test_entities_of_tags(tags: list[str | None], expected: list[tuple[str, int, int]]) -> None:
    assert entities_in(tags, sorted({tag for tag in tags if tag})) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ada lives in Paris.", "Ada|lives|in|Paris|."),
        ("  'Jean-Luc', 3.5% (a@b.c)\n", "'|Jean-Luc|'|,|3.5|%|(|a@b.c|)"),
        ("o'clock -- ok-", "o'clock|-|-|ok|-"),
        ("L. Moor of the U.S., not i. or X1.", "L.|Moor|of|the|U.S.|,|not|i|.|or|X1|."),
        ("हिन्दी भाषा", "हिन्दी|भाषा"),
        ("東京に行く", "東|京|に|行|く"),
        ("naïve cafe\u0301", "naïve|cafe\u0301"),
    ],
)
def test_words_of_a_text(text: str, words: str) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words.split("|")


def test_rows_without_tags_are_encoded_alike_and_predicted_by_word(tokenizer: Any) -> None:
    task = task_of()
    inputs, whole = (made(ROWS, tokenizer, Lengths(LONGEST)) for made in (task.encode_inputs, task.encode))
    shared = {"input_ids", "token_type_ids", "word_of", FULL} & set(whole)
    assert {name: inputs[name] for name in shared} == {name: whole[name] for name in shared}
    columns = {
        name: [np.array(row, dtype=np.int32) for row in values] for name, values in inputs.items() if name != FULL
    }
    batch = task.collate_inputs(columns, build_context(tokenizer, TAGS, ModelFacts()))
    best = np.where(batch["word_of"] >= 0, batch["word_of"] % len(TAGS), 4)
    outputs = {
        "best": best,
        "scores": np.ones(best.shape, np.float32),
        **{name: batch[name] for name in task.beside_inputs},
    }
    for row, tokens, found in zip(ROWS, inputs["word_of"], task.predictions(outputs, TAGS, None), strict=True):
        assert tuple(found) == task.prediction_columns
        assert found["prediction"] == [
            TAGS[word % len(TAGS)] if word in tokens else None for word in range(len(row["tokens"]))
        ]
        text = " ".join(row["tokens"])
        assert all(text[entity["start"] : entity["end"]] == entity["word"] for entity in found["entities"])


def test_raw_text_has_spans(folder: Path) -> None:
    task, tokenizer = task_of(), AutoTokenizer.from_pretrained(folder)
    row = {"text": "ada bell, of\ud800 curie."}
    assert task.check_input(row) is None and task.check_input({"text": " "}) == "field 'text' is empty"
    assert task.check_input({"tokens": []}) == "field 'tokens' has no words"
    assert task.check_input({"x": "y"}) == "has neither words in 'tokens' nor text in 'text'"
    inputs = task.encode_inputs([row, {"tokens": ["euler"]}], tokenizer, Lengths(99))
    columns = {
        name: [np.array(row, dtype=np.int32) for row in values] for name, values in inputs.items() if name != FULL
    }
    batch = task.collate_inputs(columns, build_context(tokenizer, TAGS, ModelFacts()))
    tags = {0: "B-PER", 1: "I-PER", 5: "B-LOC"}
    best = np.array([[TAGS.index(tags.get(word, "O")) for word in words] for words in batch["word_of"]])
    outputs = {"best": best, "scores": np.full(best.shape, 0.5, np.float32)}
    first, second = task.predictions(outputs | {name: batch[name] for name in task.beside_inputs}, TAGS, None)
    assert first["prediction"] == ["B-PER", "I-PER", "O", "O", "O", "B-LOC", "O"] and second["prediction"] == ["B-PER"]
    assert first["entities"] == [
        {"entity_group": "PER", "score": 0.5, "word": "ada bell", "start": 0, "end": 8},
        {"entity_group": "LOC", "score": 0.5, "word": "curie", "start": 14, "end": 19},
    ]


@pytest.mark.parametrize("roberta", [True, False])
def test_a_word_of_a_list_is_the_word_of_a_text(tmp_path: Path, roberta: bool) -> None:
    """Byte-level BPE without a space before the first word, of a class that reads `add_prefix_space` and of none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, RobertaTokenizer

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(
        ["ada in paris"] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    if roberta:
        parts = json.loads(made.to_str())["model"]
        tokenizer: Any = RobertaTokenizer(vocab=parts["vocab"], merges=[tuple(pair) for pair in parts["merges"]])
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text('{"model_type": "roberta"}')
    config = ModelConfig(name_or_path=str(tmp_path / "model"))
    for reads_words in (False, True):
        found = load_tokenizer(str(cache_tokenizer(config, tmp_path / "cache", reads_words)))
        tokens = found.convert_ids_to_tokens(found(["ada", "in", "paris"], is_split_into_words=True)["input_ids"])
        assert ("Ġparis" in tokens) == reads_words


def test_the_users_own_figures_get_the_logits() -> None:
    """As compute_metrics of run_ner.py reads them; ours read the likeliest tag and its probability."""
    task, logits = task_of(), torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]])
    best, scores = reduced = task.reduce_logits(logits, None)
    assert best.tolist() == [[1, 0]] and torch.allclose(scores, logits.softmax(-1).max(-1).values)
    assert Figures(task, TAGS, None, lambda prediction: {}).shown(logits, reduced) is logits
