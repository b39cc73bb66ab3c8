"""The kinds of labels a text may have: one class, several classes, or a number, named as `config.problem_type` in
transformers.

Each class here defines for one kind which values are valid, how a value is stored with the tokens, the array of
labels, and the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from raytrain_nlp.config.labels import declared_names, is_multi_hot, is_whole, label_text
from raytrain_nlp.tasks.base import Metrics

GLUE_METRICS = {
    "cola": ("matthews_correlation",),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearmanr"),
    "wnli": ("accuracy",),
}
"""The figures of each GLUE task (Wang et al. 2019, table 1), by the names of Hugging Face's `evaluate`."""


class SingleLabel:
    """One class of two or more: an integer or a text."""

    single_class = True
    """Does each row have exactly one class?"""

    def __init__(self, label_names: list[str] | None = None):
        self.label_names = label_names
        self._named = declared_names(label_names) if label_names else None

    def check(self, label: Any) -> str | None:
        """Why a value is no label, or None."""
        if label is None or label == "":
            return "is null or empty"
        if not isinstance(label, (str, int, bool)) and not (isinstance(label, (float, Decimal)) and is_whole(label)):
            hint = {
                float: " (numbers: task.problem_type: regression)",
                list: " (lists: task.problem_type: multi_label_classification)",
            }
            return f"is {type(label).__name__}, not an integer or text{hint.get(type(label), '')}"
        if not _is_unicode(label_text(label)):
            return "has a lone surrogate, which is no Unicode text"
        if self._named is not None and label_text(label) not in self._named:
            return (
                f"has label '{label_text(label)}', which is none of the names "
                f"({', '.join(self.label_names or [])[:80]})"
            )
        return None

    def stored(self, label: Any) -> Any:
        """The value as it is kept beside the tokens: the label's canonical text, or its name among those declared."""
        return self._named[label_text(label)] if self._named else label_text(label)

    def classes(self, stored: list[Any]) -> Iterable[str]:
        """The classes of stored values, one after the other."""
        return stored

    def tensor(self, stored: list[Any], label_ids: dict[str, int]) -> np.ndarray:
        """`labels` of the model: int64 [rows]."""
        return np.array([label_ids[label] for label in stored], dtype=np.int64)

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        """Fields of the model's config."""
        named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        return {"num_labels": len(labels), **named, "problem_type": "single_label_classification"}

    def metrics(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> Metrics:
        """Accuracy, F1 (of label 1 for two classes, as GLUE; else macro) and, for two classes, Matthews'
        correlation.
        """
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        best = np.argmax(logits, axis=-1)
        if len(labels) != 2:
            macro = f1_score(truth, best, average="macro", labels=list(range(len(labels))), zero_division=0)
            return {"accuracy": accuracy_score(truth, best), "f1": macro}
        return {
            "accuracy": accuracy_score(truth, best),
            "f1": f1_score(truth, best, zero_division=0),
            "mcc": matthews_corrcoef(truth, best),
        }

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        """Names of `metrics`; of any number of classes where `labels` is None."""
        return ("accuracy", "f1", "mcc") if labels is None or len(labels) == 2 else ("accuracy", "f1")

    def report(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> dict[str, Any]:
        """Precision, recall, F1 and rows of each class; the confusion matrix, a row for each true class."""
        from sklearn.metrics import confusion_matrix

        best, ids = np.argmax(logits, axis=-1), list(range(len(labels)))
        return {
            **_of_classes(truth, best, labels),
            "confusion_matrix": confusion_matrix(truth, best, labels=ids).tolist(),
        }

    def rows(self, logits: np.ndarray, labels: list[str]) -> Iterator[dict[str, Any]]:
        """The likeliest class of each row, and the probability of each class."""
        shares = _softmax(logits)
        for best, row in zip(shares.argmax(axis=-1).tolist(), shares.tolist(), strict=True):
            yield {"prediction": labels[best], "probabilities": dict(zip(labels, row, strict=True))}

    def truth(self, value: Any, labels: list[str]) -> Any:
        """A row of `tensor` as the user wrote it."""
        return labels[int(value)]


class MultiLabel(SingleLabel):
    """Any number of classes, none included: a list of integers or texts, or (`multi_hot`) a 0 or 1 for each of
    `label_names`.
    """

    single_class = False

    def __init__(self, label_names: list[str] | None = None, multi_hot: bool = False):
        super().__init__(label_names)
        self._columns = label_names if multi_hot else None

    def check(self, label: Any) -> str | None:
        if not isinstance(label, list):
            return f"is {'null' if label is None else type(label).__name__}, not a list of labels"
        if self._columns is not None:
            if len(label) != len(self._columns):
                return f"has {len(label)} values where there are {len(self._columns)} classes"
            return None if is_multi_hot(label) else f"holds more than 0 and 1 ({str(label)[:60]})"
        return next(
            (
                reason.replace("is ", "holds a label that is ", 1)
                for one in label
                if (reason := super(MultiLabel, self).check(one))
            ),
            None,
        )

    def stored(self, label: Any) -> Any:
        if self._columns is not None:
            return sorted(name for name, value in zip(self._columns, label, strict=True) if value)
        return sorted({super(MultiLabel, self).stored(one) for one in label})

    def classes(self, stored: list[Any]) -> Iterable[str]:
        return (label for row in stored for label in row)

    def tensor(self, stored: list[Any], label_ids: dict[str, int]) -> np.ndarray:
        """Float32 [rows, labels], 1 for the labels of a row."""
        made: np.ndarray = np.zeros((len(stored), max(label_ids.values()) + 1), dtype=np.float32)
        for i, row in enumerate(stored):
            made[i, [label_ids[label] for label in row]] = 1
        return made

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return {**super().model_kwargs(labels), "problem_type": "multi_label_classification"}

    def metrics(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> Metrics:
        """Micro and macro F1, and the share of rows with all labels right; a label counts from probability 0.5 on."""
        from sklearn.metrics import accuracy_score, f1_score

        chosen, truth = (logits >= 0).astype(int), truth.astype(int)
        figures = {
            f"f1_{average}": f1_score(truth, chosen, average=average, zero_division=0) for average in ("micro", "macro")
        }
        return {**figures, "accuracy": accuracy_score(truth, chosen)}

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return ("f1_micro", "f1_macro", "accuracy")

    def report(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> dict[str, Any]:
        return _of_classes(truth.astype(int), (logits >= 0).astype(int), labels)

    def rows(self, logits: np.ndarray, labels: list[str]) -> Iterator[dict[str, Any]]:
        """The classes of each row, and the probability of each."""
        for row in (1 / (1 + np.exp(-logits.astype(np.float64)))).tolist():
            chosen = [name for name, value in zip(labels, row, strict=True) if value >= 0.5]
            yield {"prediction": chosen, "probabilities": dict(zip(labels, row, strict=True))}

    def truth(self, value: Any, labels: list[str]) -> Any:
        return [name for name, chosen in zip(labels, value, strict=True) if chosen]


class Regression:
    """A number."""

    single_class = False

    def check(self, label: Any) -> str | None:
        try:
            number = float(label) if isinstance(label, (str, int, float)) and not isinstance(label, bool) else None
        except (ValueError, OverflowError):  # an integer of hundreds of digits
            number = None
        if number is None:
            return f"is {'null' if label is None else repr(label)[:40]}, not a number"
        return None if math.isfinite(number) else f"is {number}, not a finite number"

    def stored(self, label: Any) -> float:
        return float(label)

    def classes(self, stored: list[Any]) -> Iterable[str]:
        return ()

    def tensor(self, stored: list[Any], label_ids: dict[str, int]) -> np.ndarray:
        """Float32 [rows]."""
        return np.array(stored, dtype=np.float32)

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def metrics(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> Metrics:
        """Pearson's and Spearman's correlation (0 where one side is constant, and it is not defined) and the mean
        squared error.
        """
        from scipy.stats import pearsonr, spearmanr

        guess: np.ndarray = logits.reshape(-1).astype(np.float64)
        truth = truth.reshape(-1).astype(np.float64)
        defined = len(truth) > 1 and np.ptp(guess) > 0 and np.ptp(truth) > 0
        figures = (
            {"pearson": pearsonr(guess, truth).statistic, "spearmanr": spearmanr(guess, truth).statistic}
            if defined
            else {"pearson": 0.0, "spearmanr": 0.0}
        )
        return {**figures, "mse": np.mean((guess - truth) ** 2)}

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return ("pearson", "spearmanr", "mse")

    def report(self, logits: np.ndarray, truth: np.ndarray, labels: list[str]) -> dict[str, Any]:
        return {}

    def rows(self, logits: np.ndarray, labels: list[str]) -> Iterator[dict[str, Any]]:
        """The number of each row."""
        yield from ({"prediction": float(value)} for value in logits.reshape(-1))

    def truth(self, value: Any, labels: list[str]) -> Any:
        return float(np.asarray(value).reshape(-1)[0])


def _of_classes(truth: np.ndarray, chosen: np.ndarray, labels: list[str]) -> dict[str, Any]:
    from sklearn.metrics import classification_report

    ids = list(range(len(labels)))
    return {
        "classes": classification_report(
            truth, chosen, labels=ids, target_names=labels, output_dict=True, zero_division=0
        )
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Float64 [rows, classes], each row with sum 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def glue_metrics(glue: str, metrics: Metrics) -> Metrics:
    """The figures of one GLUE task and, where they are two, their mean as `run_glue.py` names it."""
    metrics = {**metrics, "matthews_correlation": metrics.get("mcc", 0.0)}
    chosen = {name: metrics[name] for name in GLUE_METRICS[glue]}
    return {**chosen, "combined_score": sum(chosen.values()) / len(chosen)} if len(chosen) > 1 else chosen


def glue_names(glue: str) -> tuple[str, ...]:
    """The names of `glue_metrics`."""
    chosen = GLUE_METRICS[glue]
    return (*chosen, "combined_score") if len(chosen) > 1 else chosen


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
