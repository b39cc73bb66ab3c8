"""The task: what rows it takes, what tensors it makes, and figures equal to scikit-learn's and to a hand count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config.tasks import TextClassification
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext
from raytrain_nlp.tasks.text_classification import label_text, sorted_labels

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
        ({"a": "x", "b": "y", "y": [1]}, "field 'y' is list, not an integer or text"),
        ({"a": "x", "b": "y", "y": "\ud800"}, "field 'y' has a lone surrogate, which is no Unicode text"),
        ({"a": "x", "b": "y", "y": 0.5}, "field 'y' is float, not an integer or text"),
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
    columns = {"input_ids": [np.array([1, 2, 3]), np.array([4])], "token_type_ids": [np.array([0, 1, 1]), np.array([0])], "label": ["yes", "no"]}
    batch = PAIR.collate(columns, context)
    right = side == "right"
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9] if right else [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0] if right else [0, 0, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]] and batch["labels"].tolist() == [1, 0]


def test_token_type_ids_only_for_models_that_read_them() -> None:
    context = CollateContext(0, 0, "right", ["input_ids", "attention_mask"], ["0", "1"])
    columns = {"input_ids": [np.array([1])], "token_type_ids": [np.array([0])], "label": ["0"]}
    assert set(PAIR.collate(columns, context)) == {"input_ids", "attention_mask", "labels"}


def test_two_class_figures_by_hand() -> None:
    """4 rows: 1 true positive, 1 false positive, 1 false negative, 1 true negative."""
    logits = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    metrics = PAIR.build_metrics(["0", "1"])(SimpleNamespace(predictions=logits, label_ids=np.array([1, 0, 1, 0])))
    assert metrics == {"accuracy": 0.5, "f1": 0.5, "mcc": 0.0}


def test_many_classes_use_macro_f1_over_all_labels() -> None:
    logits = np.eye(3)[[0, 0, 1]]
    metrics = PAIR.build_metrics(["a", "b", "c"])(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1])))
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3) and "mcc" not in metrics


def test_label_names_reach_the_model_config() -> None:
    kwargs = PAIR.model_kwargs(["no", "yes"])
    assert kwargs["id2label"] == {0: "no", 1: "yes"} and kwargs["label2id"] == {"no": 0, "yes": 1} and kwargs["num_labels"] == 2
