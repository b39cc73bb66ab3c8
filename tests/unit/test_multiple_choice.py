"""Multiple choice: rows as Hugging Face's collator makes them, kept as one sequence and given back; figures by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForMultipleChoice, AutoTokenizer, BertConfig
from transformers.data.data_collator import DataCollatorForMultipleChoice

from raytrain_nlp.config import load_job
from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.choice import MultipleChoice
from raytrain_nlp.data.builtin.endings import _rows_of
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import train_tokenizer
from raytrain_nlp.planning.labels import find_known_rows, find_labels
from raytrain_nlp.planning.resolve import build_context
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.tasks.multiple_choice import MultipleChoiceTask
from raytrain_nlp.tasks.truncation import FULL, KEPT
from raytrain_nlp.trainer.training_step import StepMixin

WORDS = "ada bell curie darwin euler fermi gauss hopper".split()
CONFIG = MultipleChoice(type="multiple-choice", start_column="start", ending_columns=["a", "b", "c"])
TASK = MultipleChoiceTask(CONFIG)
LONGEST = 12


def some_rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(5)

    def text(most: int) -> str:
        return " ".join(random.choice(WORDS, size=random.integers(1, most)))

    return [
        {
            "context": text(9),
            "start": text(3) if i % 4 else "",
            "a": text(4),
            "b": text(9),
            "c": text(6),
            "label": i % 3,
        }
        for i in range(count)
    ]


ROWS = some_rows(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tokenizer."""
    return train_tokenizer(
        WORDS, TokenizerTraining(vocab_size=300), "encoder", "key", tmp_path_factory.mktemp("tokenizers"), None
    )


@pytest.fixture(params=["right", "left"])
def tokenizer(folder: Path, request: pytest.FixtureRequest) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side=request.param)


def opened(folder: Path, tokenizer: Any, tmp_path: Path, **plan: Any) -> Split:
    """The rows of this file, prepared and read again as a run does."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prepare = PrepareSpec(CONFIG, str(folder), "key", TASK.lengths(LONGEST, "train"), 0.0)
    files = find_files([str(tmp_path / "rows.jsonl")], "data.train")
    store = prepare_tokens(files, prepare, tmp_path / "tokens", map, "data.train")
    context = build_context(tokenizer, [], ModelFacts())
    return Split(SplitSpec(str(store), None, None, None, PlanSpec(len(ROWS), 1, **plan), None, CONFIG, context))


def hugging_face(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """The batch of run_swag.py."""
    features = []
    for row in rows:
        seconds = [f"{row['start']} {row[name]}" for name in CONFIG.ending_columns]
        made = tokenizer([row["context"]] * 3, seconds, truncation=True, max_length=LONGEST)
        features.append({**made, "label": row["label"]})
    return dict(DataCollatorForMultipleChoice(tokenizer)(features))


def test_batches_and_losses_are_those_of_run_swag(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    split = opened(folder, tokenizer, tmp_path, global_batch_size=16)
    torch.manual_seed(1)
    model = AutoModelForMultipleChoice.from_config(
        BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    seen: list[int] = []
    for step in range(split.plan.steps_per_epoch):
        for part in split.micro_batches(step, 2, 1, 2) + split.micro_batches(step, 2, 0, 2):
            truth = hugging_face([ROWS[row] for row in part.rows], tokenizer)
            assert set(part.tensors) == set(truth) and part.tensors["input_ids"].ndim == 3
            for name, array in part.tensors.items():
                assert array.tolist() == truth[name].tolist(), name
            tensors = {name: torch.as_tensor(array).long() for name, array in part.tensors.items()}
            assert torch.equal(model(**tensors).loss, model(**truth).loss)
            assert part.weight == len(part.rows) and part.padded_tokens == truth["input_ids"].numel()
            seen += part.rows.tolist()
    assert sorted(seen) == list(range(len(ROWS)))


def test_a_budget_of_padded_tokens_holds(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    split = opened(folder, tokenizer, tmp_path, batch_tokens=200)
    sizes = [split.micro_batches(step, 1, 0, 1)[0].padded_tokens for step in range(split.plan.steps_per_epoch)]
    assert max(sizes) <= 200 and len(sizes) > 3


def test_rows_of_which_an_ending_is_cut_are_counted(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [
        max(len(tokenizer(row["context"], f"{row['start']} {row[name]}")["input_ids"]) for name in "abc")
        for row in ROWS
    ]
    manifest = opened(folder, tokenizer, tmp_path, global_batch_size=8).store.manifest
    assert sorted(int(n) for n, count in manifest["cut"].items() for _ in range(count)) == sorted(
        n for n in whole if n > LONGEST
    )
    assert manifest["cut"] and manifest["cut_targets"] == {}


def test_the_label_is_no_class_of_the_data(folder: Path, tmp_path: Path) -> None:
    """A head of multiple choice has one output, whatever `id2label` says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    store: TokenStore = opened(folder, tokenizer, tmp_path, global_batch_size=8).store
    BertConfig(architectures=["BertForMultipleChoice"]).save_pretrained(tmp_path / "model")
    job = load_job(
        {
            "name": "x",
            "task": CONFIG.model_dump(),
            "model": {"name_or_path": str(tmp_path / "model")},
            "data": {"train": "x"},
        }
    )
    assert find_labels(job, store) == ([], []) and find_known_rows(store, [], 0.0) == (None, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"start": ""}, None),
        ({"label": "2"}, None),
        ({"label": 1.0}, None),
        ({"context": " "}, "field 'context' is empty"),
        ({"start": None}, "field 'start' is null"),
        ({"b": ""}, "field 'b' is empty"),
        ({"c": 3}, "field 'c' is int, not text"),
        ({"label": 3}, "field 'label' is '3', none of the endings (0 to 2)"),
        ({"label": -1}, "field 'label' is '-1', none of the endings (0 to 2)"),
        ({"label": 0.5}, "field 'label' is '0.5', none of the endings (0 to 2)"),
        ({"label": None}, "field 'label' is null or empty"),
        ({"label": [1]}, "field 'label' is list, not the number of an ending"),
    ],
)
def test_which_rows_are_bad(change: dict[str, Any], reason: str | None) -> None:
    row = {"context": "x", "start": "y", "a": "1", "b": "2", "c": "3", "label": 0}
    assert TASK.check_row({**row, **change}) == reason
    assert TASK.check_row({name: value for name, value in row.items() if name != "label"}) == "field 'label' is missing"
    assert TASK.check_input({name: value for name, value in row.items() if name != "label"}) is None


def test_figures_and_predictions_by_hand(tokenizer: Any) -> None:
    logits = np.log(np.array([[1, 2, 1], [6, 1, 1], [1, 1, 2]], dtype=np.float32))
    truth = np.array([1, 2, 2])
    figures = TASK.build_metrics([], None)(SimpleNamespace(predictions=(logits, 0), label_ids=truth))
    assert figures == {"accuracy": pytest.approx(2 / 3)} and tuple(figures) == TASK.metric_names(None)
    rows = list(TASK.score_rows(logits, truth, [], None))
    assert [(row["label"], row["prediction"]) for row in rows] == [(1, 1), (2, 0), (2, 2)]
    assert rows[1]["probabilities"] == pytest.approx({"a": 0.75, "b": 0.125, "c": 0.125})


def test_rows_without_labels_are_encoded_alike(tokenizer: Any) -> None:
    inputs = TASK.encode_inputs(ROWS, tokenizer, Lengths(LONGEST))
    whole = TASK.encode(ROWS, tokenizer, Lengths(LONGEST))
    assert inputs == {name: whole[name] for name in inputs} and set(whole) - set(inputs) == {"label", FULL, KEPT}
    assert set(TASK.prediction_columns) == {"prediction", "probabilities"}


@pytest.mark.parametrize("columns", [["a"], ["a", "a"]])
def test_endings_are_two_at_least_and_each_a_column(columns: list[str]) -> None:
    with pytest.raises(ValidationError):
        MultipleChoice(type="multiple-choice", ending_columns=columns)


def test_built_in_endings_have_the_right_one_in_every_place() -> None:
    made = _rows_of([{"summary": f"s{i}", "text": f"t{i}"} for i in range(60)])
    assert all(row[f"ending{row['label']}"] == f"t{i}" and row["context"] == f"s{i}" for i, row in enumerate(made))
    assert all(len({row[f"ending{place}"] for place in range(4)}) == 4 for row in made)
    assert {row["label"] for row in made} == {0, 1, 2, 3}


def test_the_mask_of_a_row_with_endings_of_unequal_length_is_kept(folder: Path, tmp_path: Path) -> None:
    """Also where all rows of a micro-batch are equally long: the shorter endings are filled up."""
    split = opened(folder, AutoTokenizer.from_pretrained(folder), tmp_path, global_batch_size=1)
    feed: Any = SimpleNamespace(task=TASK, masks_padding_only=True, has_one_mask=True)
    masked = 0
    for step in range(split.plan.steps_per_epoch):
        (part,) = split.micro_batches(step, 1, 0, 1)
        assert part.tokens == part.padded_tokens
        masked += int((part.tensors["attention_mask"] == 0).any())
        begun = StepMixin._feed_begin(SimpleNamespace(_feed=feed), part)  # type: ignore[arg-type]
        assert begun.padded and not begun.full
    assert masked > 10
