"""Extractive question answering: features and labels by brute force over characters, batches as transformers' collator
makes them, their losses, answers by trying all stretches, figures by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from squad_truth import answer_of, features_of
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding, LlamaConfig

from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.question import QuestionAnswering
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import train_tokenizer
from raytrain_nlp.planning.split_plans import build_context
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.question_answering import QuestionAnsweringTask
from raytrain_nlp.tasks.truncation import FULL

WORDS = "ada bell curie darwin euler fermi gauss hopper".split()
LONGEST, STRIDE, QUESTIONS = 32, 8, 101
V1 = QuestionAnswering(type="question-answering", doc_stride=STRIDE, max_answer_length=5, n_best_size=64)
V2 = V1.model_copy(update={"version_2_with_negative": True, "write_n_best": 3})


def some_rows(count: int, unanswered: bool = False) -> list[dict[str, Any]]:
    """Contexts of up to 90 words, most of them longer than a window; every third question has no answer on request."""
    random, rows = np.random.default_rng(5), []
    for i in range(count):
        words = random.choice(WORDS, size=random.integers(10, 90)).tolist()
        first = int(random.integers(len(words) - 3))
        context, before = " ".join(words), " ".join(words[:first])
        answer = {"text": [" ".join(words[first : first + 2])], "answer_start": [len(before) + bool(first)]}
        if unanswered and i % 3 == 0:
            answer = {"text": [], "answer_start": []}
        question = " ".join(random.choice(WORDS, size=random.integers(1, 6)))
        rows.append({"id": f"q{i}", "question": f" {question}", "context": context, "answers": answer})
    return rows


ROWS = some_rows(QUESTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tokenizer."""
    return train_tokenizer(
        WORDS, TokenizerTraining(vocab_size=300), "encoder", "key", tmp_path_factory.mktemp("tokenizers"), None
    )


@pytest.fixture(params=["right", "left"])
def tokenizer(folder: Path, request: pytest.FixtureRequest) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side=request.param)


def opened(rows: list[dict[str, Any]], config: QuestionAnswering, tokenizer: Any, tmp_path: Path) -> Split:
    """Rows, prepared and read again as a run does."""
    tmp_path.mkdir(exist_ok=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = PrepareSpec(config, str(tmp_path / "tokenizer"), "key", Lengths(LONGEST), 0.0)
    files = find_files([str(tmp_path / "rows.jsonl")], "data.train")
    folder = prepare_tokens(files, prepare, tmp_path / "tokens", map, "data.train")
    context = build_context(tokenizer, [], ModelFacts())
    split = Split(SplitSpec(str(folder), None, None, None, PlanSpec(1, 1, global_batch_size=16), None, config, context))
    plan = PlanSpec(split.store.num_rows, 1, "group_by_length", 16)
    return Split(SplitSpec(str(folder), None, None, None, plan, None, config, context))


def hugging_face(row: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    return features_of(row, tokenizer, LONGEST, STRIDE)


def collated(features: list[dict[str, Any]], tokenizer: Any, width: int) -> dict[str, torch.Tensor]:
    """Padded on the tokenizer's side, which moves the labels."""
    inputs = [{name: feature[name] for name in ("input_ids", "token_type_ids")} for feature in features]
    batch = dict(DataCollatorWithPadding(tokenizer, padding="max_length", max_length=width)(inputs))
    before = [(width - len(f["input_ids"])) * (tokenizer.padding_side == "left") for f in features]
    for name in ("start_positions", "end_positions"):
        batch[name] = torch.tensor([f[name] + gap for f, gap in zip(features, before, strict=True)])
    return batch


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """One to which padding on the left says nothing: its positions are relative."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    return AutoModelForQuestionAnswering.from_config(config).eval()


def without_types(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array).long() for name, array in tensors.items() if name != "token_type_ids"}


def test_batches_and_losses_are_those_of_run_qa(tokenizer: Any, model: Any, tmp_path: Path) -> None:
    split = opened(ROWS[:30], V1, tokenizer, tmp_path)
    features = [feature for row in ROWS[:30] for feature in hugging_face(row, tokenizer)]
    assert split.store.num_rows == len(features) > 60
    assert sum(feature["start_positions"] != feature["null"] for feature in features) >= 30
    seen: list[int] = []
    for step in range(split.plan.steps_per_epoch):
        longest = max(len(features[row]["input_ids"]) for row in split.plan.at(step)[2])
        for part in split.micro_batches(step, 2, 1, 1) + split.micro_batches(step, 2, 0, 1):
            truth = collated([features[row] for row in part.rows], tokenizer, longest)
            assert set(part.tensors) == set(truth)
            for name, array in part.tensors.items():
                assert array.tolist() == truth[name].tolist(), name
            assert torch.equal(model(**without_types(part.tensors)).loss, model(**without_types(truth)).loss)
            assert part.weight == len(part.rows)
            seen += part.rows.tolist()
    assert sorted(seen) == list(range(len(features)))


def test_rows_and_features_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    """Row by row of the data: what a number of them has become, and where its features were read from."""
    store = opened(ROWS, V1, tokenizer, tmp_path).store
    counts = [len(hugging_face(row, tokenizer)) for row in ROWS]
    ends = np.cumsum(counts)
    assert [store.rows_of(count) for count in range(1, QUESTIONS + 1)] == ends.tolist()
    assert store.rows_of(None) == store.rows_of(500) == ends[-1]
    assert [store.data_rows(int(end)) for end in ends] == list(range(1, QUESTIONS + 1))
    assert [store.locate(row)[1] for row in range(ends[-1])] == [i + 1 for i, n in enumerate(counts) for _ in range(n)]
    told = QuestionAnsweringTask(V1).spread_note(store.manifest["spread"], store.data_rows(ends[-1]), int(ends[-1]))
    many = sum(count > 1 for count in counts)
    assert told == f"{many} of 101 contexts are longer than a window: {ends[-1]} features in all."


def logits_of(split: Split, model: Any) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Of all features in order what evaluation keeps: in batches of other widths, joined."""
    from raytrain_nlp.trainer.eval_outputs import Joined, Part

    parts = []
    for step in range(split.plan.steps_per_epoch):
        for part in split.micro_batches(step, 1, 0, 1):
            tensors = without_types(part.tensors)
            with torch.no_grad():
                output = model(**tensors)
            logits = split.task.reduce_logits((output.start_logits, output.end_logits, output), None)
            labels = tuple(tensors[name].numpy() for name in ("start_positions", "end_positions"))
            parts.append(Part(part.rows, part.weight, None, tuple(x.numpy() for x in logits), labels))
    joined = Joined(parts)
    return joined.of("own"), joined.of("labels")


def by_brute_force(row: dict[str, Any], tokenizer: Any, model: Any) -> dict[str, Any]:
    return answer_of(row, hugging_face(row, tokenizer), model, V1.max_answer_length)


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_each_question_is_answered_once_by_all_its_features(
    config: QuestionAnswering, tokenizer: Any, model: Any, tmp_path: Path
) -> None:
    null = config is V2
    rows = some_rows(24, unanswered=null)
    truth = [by_brute_force(row, tokenizer, model) for row in rows]
    if null:  # a threshold by which half of the questions have no answer
        threshold = float(np.median([found["difference"] for found in truth]))
        config = config.model_copy(update={"null_score_diff_threshold": threshold})
        none = {"prediction": "", "start": None}
        truth = [{**found, **none} if found["difference"] > threshold else found for found in truth]
    split = opened(rows, config, tokenizer, tmp_path)
    logits, labels = logits_of(split, model)
    columns = split.fetch(np.arange(split.store.num_rows))
    found = split.task.join_predictions(logits, labels, columns)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [(row["prediction"], row["start"]) for row in found] == [(t["prediction"], t["start"]) for t in truth]
    if null:
        assert [row["null_score_diff"] for row in found] == pytest.approx([t["difference"] for t in truth], abs=1e-3)
        assert sum(row["prediction"] == "" for row in found) == 12 and all(len(row["n_best"]) == 3 for row in found)
    figures = split.task.build_metrics([], None)(SimpleNamespace(predictions=found))
    assert set(figures) <= set(split.task.metric_names(None)) and len(figures) > 1
    right = [
        (t["prediction"] in row["answers"]["text"]) if row["answers"]["text"] else t["prediction"] == ""
        for t, row in zip(truth, rows, strict=True)
    ]
    assert figures["exact" if null else "exact_match"] == pytest.approx(100 * np.mean(right))


def test_predictions_are_those_of_the_evaluation(tokenizer: Any, model: Any, tmp_path: Path) -> None:
    """Rows without answers, in batches of like length that tear questions apart."""
    from raytrain_nlp.prediction.batches import BatchSize, pack_batch, unpack_batch

    task, context = QuestionAnsweringTask(V2), build_context(tokenizer, [], ModelFacts(token_types=False))
    encoded = task.encode_input_rows(
        [{"question": r["question"], "context": r["context"]} for r in ROWS], tokenizer, Lengths(LONGEST)
    )
    encoded.columns.pop(FULL)
    tokens = {name: [np.asarray(row, dtype=np.int32) for row in column] for name, column in encoded.columns.items()}
    lengths = np.array([len(row) for row in tokens["input_ids"]])
    order, found = np.argsort(-lengths, kind="stable"), {}
    for part in BatchSize(7).slices(lengths[order]):
        chosen = order[part]
        packed = pack_batch(
            np.array(encoded.rows)[chosen],
            task.collate_inputs({name: [column[i] for i in chosen] for name, column in tokens.items()}, context),
        )
        places, arrays = unpack_batch(packed)
        tensors = {name: torch.tensor(array).long() for name, array in arrays.items()}
        beside = {name: tensors.pop(name) for name in task.beside_inputs}
        with torch.no_grad():
            outputs = task.outputs(model, tensors, tokenizer, {}) | beside
        for i, place in enumerate(places.tolist()):
            found.setdefault(place, []).append({name: tensor[i].numpy() for name, tensor in outputs.items()})
    split = opened(ROWS, V2, tokenizer, tmp_path)
    truth = split.task.join_predictions(*logits_of(split, model), split.fetch(np.arange(split.store.num_rows)))
    assert sorted(found) == list(range(QUESTIONS))
    for place, row in enumerate(ROWS):
        made = task.predict_row(found[place], task.read_beside(row) or "")
        assert tuple(made) == task.prediction_columns
        assert (made["prediction"], made["start"]) == (truth[place]["prediction"], truth[place]["start"])
        assert made["score"] == pytest.approx(truth[place]["score"], abs=1e-4)
        assert made["start"] is None or row["context"][made["start"] : made["end"]] == made["prediction"]


def test_a_question_that_leaves_no_room_is_cut_where_that_is_needed(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = "ada " * 40
    rows = [
        {**ROWS[0], "question": long},
        {**ROWS[0], "question": "ada " * 22, "context": "bell", "answers": {"text": ["bell"], "answer_start": [0]}},
    ]
    split = opened(rows, V1, tokenizer, tmp_path)
    kept = [tokenizer.decode(ids).count("ada") for ids in split.fetch(np.arange(split.store.num_rows))["input_ids"]]
    assert split.store.rows_of(1) > 1 and kept[-1] == 22
    whole = len(tokenizer(long, rows[0]["context"])["input_ids"])
    assert split.store.manifest["cut"] == {str(whole): 1} and max(split.store.lengths) <= LONGEST
    task = QuestionAnsweringTask(V1)
    assert task.check_lengths(Lengths(LONGEST), tokenizer) is None
    problem = task.check_lengths(Lengths(STRIDE + 4), tokenizer)
    assert problem and problem.where == "task.doc_stride"


ROW = {"question": "who", "context": "ada met bell and ada", "answers": {"text": ["bell"], "answer_start": [8]}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"answers": [{"text": "bell", "answer_start": 8}]}, None),
        ({"answers": {"text": ["bell"], "answer_start": [8.0]}}, None),
        ({"question": " "}, "field 'question' is empty"),
        ({"context": None}, "field 'context' is null"),
        ({"answers": None}, "field 'answers' is null"),
        ({"answers": "bell"}, "field 'answers' is 'bell', not {text: [...], answer_start: [...]}"),
        (
            {"answers": {"text": [], "answer_start": []}},
            "field 'answers' has no answer, and task.version_2_with_negative is not set",
        ),
        ({"answers": {"text": ["bell"]}}, "field 'answers' has 1 texts and 0 of answer_start"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "field 'answers' has the answer '', not a text"),
        ({"answers": {"text": [3], "answer_start": [0]}}, "field 'answers' has the answer 3, not a text"),
        (
            {"answers": {"text": ["bell"], "answer_start": [None]}},
            "field 'answers': answer_start is None, not the place of a character",
        ),
        (
            {"answers": {"text": ["ada"], "answer_start": [15]}},
            "field 'answers': the context has 'd a' at answer_start 15, not 'ada': 'ada' stands at 17",
        ),
        (
            {"answers": {"text": ["bell"], "answer_start": [-12]}},
            "field 'answers': the context has '' at answer_start -12, not 'bell': 'bell' stands at 8",
        ),
        (
            {"answers": {"text": ["curie"], "answer_start": [0]}},
            "field 'answers': the context does not have 'curie', at answer_start 0 or nor anywhere else",
        ),
    ],
)
def test_which_rows_are_bad(change: dict[str, Any], reason: str | None) -> None:
    task = QuestionAnsweringTask(V1)
    assert task.check_row({**ROW, **change}) == reason
    without = {name: value for name, value in ROW.items() if name != "answers"}
    assert task.check_row(without) == "field 'answers' is missing" and task.check_input(without) is None
    empty = {**ROW, "answers": {"text": [], "answer_start": []}}
    assert QuestionAnsweringTask(V2).check_row(empty) is None
