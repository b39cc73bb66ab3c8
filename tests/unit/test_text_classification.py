"""The task: what rows it takes, what tensors it makes, and figures equal to scikit-learn's and to a hand count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raytrain_nlp.config.labels import label_text, sorted_labels
from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Lengths, Place

PLACE = Place(0, 0, np.arange(3))
PAIR = build_task(TextClassification(type="text-classification", text_columns=["a", "b"], label_column="y"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": "x", "b": "y", "y": 1}, None),
        ({"a": "x", "b": "y", "y": "yes"}, None),
        ({"a": "x", "b": "y", "y": 2.0}, None),
        ({"b": "y", "y": 1}, "field 'a' is missing"),
        ({"a": None, "b": "y", "y": 1}, "field 'a' is null"),
        ({"a": 3, "b": "y", "y": 1}, "field 'a' is int, not text"),
        ({"a": " ", "b": "y", "y": 1}, "field 'a' is empty"),
        ({"a": "x", "b": "y"}, "field 'y' is missing"),
        ({"a": "x", "b": "y", "y": None}, "field 'y' is null or empty"),
        (
            {"a": "x", "b": "y", "y": [1]},
            "field 'y' is list, not an integer or text (lists: task.problem_type: multi_label_classification)",
        ),
        ({"a": "x", "b": "y", "y": "\ud800"}, "field 'y' has a lone surrogate, which is no Unicode text"),
        (
            {"a": "x", "b": "y", "y": 0.5},
            "field 'y' is float, not an integer or text (numbers: task.problem_type: regression)",
        ),
    ],
)
def test_which_rows_are_bad(row: dict[str, Any], reason: str | None) -> None:
    assert PAIR.check_row(row) == reason


def test_labels_have_one_spelling_and_a_stable_order() -> None:
    assert [label_text(value) for value in (1, 1.0, "1", True, " 1 ")] == ["1"] * 5
    assert sorted_labels(["10", "9", "-1"]) == ["-1", "9", "10"] and sorted_labels(["b", "10", "a"]) == ["10", "a", "b"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_pads_and_masks_by_hand(side: str) -> None:
    context = CollateContext(9, 0, side, ["input_ids", "token_type_ids"], ["no", "yes"])
    columns = {
        "input_ids": [np.array([1, 2, 3]), np.array([4])],
        "token_type_ids": [np.array([0, 1, 1]), np.array([0])],
        "label": ["yes", "no"],
    }
    batch = PAIR.collate(columns, context, PLACE)
    right = side == "right"
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9] if right else [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0] if right else [0, 0, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]] and batch["labels"].tolist() == [1, 0]


def test_token_type_ids_only_for_models_that_read_them() -> None:
    context = CollateContext(0, 0, "right", ["input_ids", "attention_mask"], ["0", "1"])
    columns = {"input_ids": [np.array([1])], "token_type_ids": [np.array([0])], "label": ["0"]}
    assert set(PAIR.collate(columns, context, PLACE)) == {"input_ids", "attention_mask", "labels"}


def test_two_class_figures_by_hand() -> None:
    """4 rows: 1 true positive, 1 false positive, 1 false negative, 1 true negative."""
    logits = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    metrics = PAIR.build_metrics(["0", "1"], None)(
        SimpleNamespace(predictions=logits, label_ids=np.array([1, 0, 1, 0]))
    )
    assert metrics == {"accuracy": 0.5, "f1": 0.5, "mcc": 0.0}


def test_many_classes_use_macro_f1_over_all_labels() -> None:
    logits = np.eye(3)[[0, 0, 1]]
    metrics = PAIR.build_metrics(["a", "b", "c"], None)(
        SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1]))
    )
    assert (
        metrics["accuracy"] == pytest.approx(2 / 3)
        and metrics["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
        and "mcc" not in metrics
    )


def test_label_names_reach_the_model_config() -> None:
    kwargs = PAIR.model_kwargs(["no", "yes"])
    assert (
        kwargs["id2label"] == {0: "no", 1: "yes"}
        and kwargs["label2id"] == {"no": 0, "yes": 1}
        and kwargs["num_labels"] == 2
    )


SEVERAL = build_task(TextClassification(type="text-classification", problem_type="multi_label_classification"))
NUMBER = build_task(TextClassification(type="text-classification", problem_type="regression"))
PLAIN = ["input_ids"]


@pytest.mark.parametrize(
    ("task", "label", "reason"),
    [
        (SEVERAL, [], None),
        (SEVERAL, ["a", 1], None),
        (SEVERAL, "a", "is str, not a list of labels"),
        (SEVERAL, None, "is null, not a list of labels"),
        (SEVERAL, ["a", None], "holds a label that is null or empty"),
        (NUMBER, 2, None),
        (NUMBER, -0.5, None),
        (NUMBER, "3.5", None),
        (NUMBER, "many", "is 'many', not a number"),
        (NUMBER, None, "is null, not a number"),
        (NUMBER, True, "is True, not a number"),
        (NUMBER, [1.0], "is [1.0], not a number"),
        (NUMBER, float("nan"), "is nan, not a finite number"),
    ],
)
def test_which_labels_are_bad(task: Any, label: Any, reason: str | None) -> None:
    assert task.check_row({"text": "x", "label": label}) == (reason and f"field 'label' {reason}")


def test_several_labels_become_one_column_each() -> None:
    context = CollateContext(0, 0, "right", PLAIN, ["a", "b", "c"])
    stored = [SEVERAL.problem.stored(label) for label in (["c", "a", "c"], [], ["b"])]
    batch = SEVERAL.collate({"input_ids": [np.array([1])] * 3, "label": stored}, context, PLACE)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and batch["labels"].dtype == np.float32
    assert list(SEVERAL.classes({"label": stored})) == ["a", "c", "b"]


def test_several_labels_by_hand() -> None:
    """2 rows x 2 labels: 1 true positive (a), 1 false positive (a), 1 false negative (b): micro 2/4, macro (2/3 + 0) /
    2, no row whole.
    """
    prediction = SimpleNamespace(
        predictions=np.array([[3.0, -1.0], [0.5, -2.0]]), label_ids=np.array([[1.0, 1.0], [0.0, 0.0]])
    )
    assert SEVERAL.build_metrics(["a", "b"], None)(prediction) == pytest.approx(
        {"f1_micro": 0.5, "f1_macro": 1 / 3, "accuracy": 0.0}
    )


def test_numbers_by_numpy() -> None:
    """Pearson against numpy's own; Spearman is Pearson of the ranks."""
    guess, truth = (
        np.array([[0.1], [0.4], [0.2], [0.9]], dtype=np.float32),
        np.array([1.0, 3.0, 4.0, 5.0], dtype=np.float32),
    )
    metrics = NUMBER.build_metrics([], None)(SimpleNamespace(predictions=guess, label_ids=truth))
    ranks = np.array([1, 3, 2, 4]), np.array([1, 2, 3, 4])
    assert metrics["pearson"] == pytest.approx(np.corrcoef(guess[:, 0], truth)[0, 1], abs=1e-6)
    assert metrics["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1]) and metrics["mse"] == pytest.approx(
        np.mean((guess[:, 0] - truth) ** 2)
    )
    constant = NUMBER.build_metrics([], None)(SimpleNamespace(predictions=np.zeros((4, 1)), label_ids=truth))
    assert (constant["pearson"], constant["spearmanr"]) == (0.0, 0.0)
    assert NUMBER.model_kwargs([]) == {"num_labels": 1, "problem_type": "regression"} and NUMBER.label_column is None


@pytest.mark.parametrize(
    ("glue", "columns", "figures"),
    [
        ("cola", ["sentence"], {"matthews_correlation"}),
        ("mnli", ["premise", "hypothesis"], {"accuracy"}),
        ("mrpc", ["sentence1", "sentence2"], {"accuracy", "f1", "combined_score"}),
        ("qnli", ["question", "sentence"], {"accuracy"}),
        ("qqp", ["question1", "question2"], {"accuracy", "f1", "combined_score"}),
        ("rte", ["sentence1", "sentence2"], {"accuracy"}),
        ("sst2", ["sentence"], {"accuracy"}),
        ("stsb", ["sentence1", "sentence2"], {"pearson", "spearmanr", "combined_score"}),
        ("wnli", ["sentence1", "sentence2"], {"accuracy"}),
    ],
)
def test_glue_by_name(glue: str, columns: list[str], figures: set[str]) -> None:
    task = build_task(TextClassification(type="text-classification", glue=glue))
    labels = [] if glue == "stsb" else ["0", "1", "2"][: 3 if glue == "mnli" else 2]
    logits = np.array([[0.1], [0.9]]) if glue == "stsb" else np.eye(len(labels))[:2]
    assert task.required_columns() == [*columns, "label"]
    metrics = task.build_metrics(labels, None)(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1])))
    assert metrics == pytest.approx(dict.fromkeys(figures, 1.0))


@pytest.mark.parametrize(
    "values",
    [
        {"problem_type": "regression", "label_names": ["a", "b"]},
        {"glue": "stsb", "problem_type": "single_label_classification"},
        {"glue": "mrpc", "problem_type": "regression"},
        {"glue": "squad"},
    ],
)
def test_contradictions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TextClassification(type="text-classification", **values)


def test_columns_that_are_joined_are_one_text() -> None:
    """As run_classification.py joins them; some of them may be blank."""
    task = build_task(
        TextClassification(type="text-classification", text_columns=["a", "b", "c"], text_column_delimiter=" | ")
    )
    row = {"a": "one", "b": "", "c": "three", "label": 1}
    assert task.check_row(row) is None and list(task.texts(row)) == ["one |  | three"]
    assert task.check_row({**row, "a": " ", "c": ""}) == "field 'a' is empty"
    assert task.check_row({**row, "b": None}) == "field 'b' is null"
    seen: list[Any] = []

    class Tokenizer:
        is_fast = True

        def __call__(self, *texts: list[str], **kwargs: Any) -> dict[str, Any]:
            seen.append(texts)
            return {"input_ids": [[1]] * len(texts[0])}

    columns = task.encode([row, row], Tokenizer(), Lengths(None))
    assert seen == [(["one |  | three"] * 2,)] and len(columns["input_ids"]) == 2
    with pytest.raises(ValidationError, match=r"set task\.text_column_delimiter"):
        TextClassification(type="text-classification", text_columns=["a", "b", "c"])
