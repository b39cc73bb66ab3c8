"""What a run keeps of its last evaluation, for its report: the figures of each class and the confusion matrix of all
rows, and some rows with what was predicted. It is read from predictions that are joined in the order of the rows, so
that it is the same at any number of ranks.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain_nlp.data.split import Split
from raytrain_nlp.paths import write_json
from raytrain_nlp.tasks.base import Task

if TYPE_CHECKING:
    from raytrain_nlp.trainer.training_step import Feed

LOOKED_AT = 500
"""Rows that examples are chosen from: the first of the data set, or as many evenly spread over it."""
_WRONG, _RIGHT = 12, 6
_CHARACTERS = 600
_LABELS = 40
"""Of more, a confusion matrix is kept as the pairs that are confused most."""
_PAIRS = 30
_PROBABILITIES = 3


def write_predictions(
    path: Path, step: int | None, scored: dict[str, tuple[Any, Any]], feed: Feed, labels: list[str], tokenizer: Any
) -> None:
    """Write what is kept of an evaluation, as `sets`: name of each validation set -> `keep_predictions`. No run ends
    over it: what it raises stands in the rank's log.

    Args:
        step: of the weights; None where they are not of a training that goes on.
        scored: as `Feed.scored`; empty where the process that made the evaluation is gone.
    """
    try:
        sets = {
            name: keep_predictions(
                feed.task, Split(feed.eval_loaders[name].dataset.spec), predictions, truth, labels, tokenizer
            )
            for name, (predictions, truth) in scored.items()
        }
        write_json(path, {"step": step, "labels": labels, "sets": sets})
    except Exception:  # noqa: BLE001 - the user's code may have put anything into predictions
        traceback.print_exc()


def keep_predictions(
    task: Task, split: Split, predictions: Any, truth: Any, labels: list[str], tokenizer: Any
) -> dict[str, Any]:
    """Plain values: `report` (as `Task.build_report`, of bounded size), `examples` (each with `row`, `source`, `line`,
    `text`, `right`, and what `Task.score_rows` says of it) and `looked_at`, the rows these are chosen from.
    """
    rows = list(_scored(task, predictions, truth, labels, tokenizer))
    chosen = _choose(rows)
    return {
        "report": bounded(task.build_report(predictions, truth, labels), labels),
        "looked_at": len(rows),
        "examples": [_example(split, task, row, tokenizer, found) for row, found in chosen],
    }


def bounded(report: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """A report without a confusion matrix of very many classes: `confused` are its largest cells off the diagonal, each
    true class, predicted class and rows.
    """
    if "confusion_matrix" not in report:
        return report
    matrix = np.array(report["confusion_matrix"])
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
    cells = [divmod(int(place), len(labels)) for place in order]
    confused = [[labels[true], labels[guess], int(off[true, guess])] for true, guess in cells if off[true, guess]]
    rest = {name: value for name, value in report.items() if name != "confusion_matrix"}
    return {**(report if len(labels) <= _LABELS else rest), "confused": confused}


def is_right(row: dict[str, Any]) -> bool | None:
    """Is a scored row right? None where that is no question of yes and no: numbers, and texts that are generated."""
    if "answers" in row:
        from raytrain_nlp.tasks.squad_figures import normalize

        return normalize(row["prediction"]) in {normalize(text) for text in row["answers"] or [""]}
    if "label" not in row or isinstance(row["label"], float):
        return None
    return bool(row["label"] == row["prediction"])


def _scored(
    task: Task, predictions: Any, truth: Any, labels: list[str], tokenizer: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some rows and their numbers: spread over all of them, where they can be taken out of the arrays."""
    arrays = predictions if isinstance(predictions, tuple) else (predictions,)
    count = len(arrays[0])
    if task.joins_rows or not all(isinstance(array, np.ndarray) and len(array) == count for array in arrays):
        yield from itertools.islice(enumerate(task.score_rows(predictions, truth, labels, tokenizer)), LOOKED_AT)
        return
    rows: np.ndarray = (
        np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)) if count else np.arange(0)
    )
    picked = tuple(array[rows] for array in arrays)
    some = picked if isinstance(predictions, tuple) else picked[0]
    yield from zip(
        rows.tolist(), task.score_rows(some, None if truth is None else truth[rows], labels, tokenizer), strict=True
    )


def _choose(rows: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """The wrong ones it is surest of, then some right ones; of other rows those that went worst, then those that went
    best, of texts the first.
    """
    wrong = [entry for entry in rows if is_right(entry[1]) is False]
    right = [entry for entry in rows if is_right(entry[1])]
    if wrong or right:
        wrong.sort(key=lambda entry: -_sureness(entry[1]))
        return wrong[:_WRONG] + _spread(right, _RIGHT)
    ranked = sorted(
        (entry for entry in rows if _error(entry[1]) is not None), key=lambda entry: -(_error(entry[1]) or 0)
    )
    if not ranked:
        return rows[: _WRONG + _RIGHT]
    worst = ranked[:_WRONG]
    return worst + ranked[len(worst) :][-_RIGHT:]


def _sureness(row: dict[str, Any]) -> float:
    shares = row.get("probabilities")
    if isinstance(shares, dict):
        return max(shares.values(), default=0.0)
    return float(row.get("score", max(shares or [0.0])))


def _error(row: dict[str, Any]) -> float | None:
    """How far off a row is: a number's distance, the share of tokens that were not predicted."""
    if isinstance(row.get("label"), float):
        return abs(row["label"] - row["prediction"])
    return 1 - row["accuracy"] if row.get("tokens") else None


def _spread(entries: list[Any], most: int) -> list[Any]:
    places: Iterable[int] = np.unique(np.linspace(0, len(entries) - 1, min(most, len(entries))).astype(int)).tolist()
    return [entries[place] for place in places] if entries else []


def _example(split: Split, task: Task, row: int, tokenizer: Any, found: dict[str, Any]) -> dict[str, Any]:
    firsts = split.store.firsts if task.joins_rows else None
    place = row if firsts is None else int(firsts[row])
    source, _, line = split.locate(place).rpartition(":")
    text = text_of(split.fetch(np.array([place]))["input_ids"][0], tokenizer)
    shares = found.get("probabilities")
    if isinstance(shares, dict):
        found = {**found, "probabilities": dict(sorted(shares.items(), key=lambda pair: -pair[1])[:_PROBABILITIES])}
    short = {name: _bounded_value(value) for name, value in found.items() if name != "n_best"}
    return {"row": row, "source": source, "line": int(line), "text": text, "right": is_right(found), **short}


def text_of(tokens: np.ndarray, tokenizer: Any) -> str:
    """The text of a row of tokens; its parts, which special tokens stand between, with `|` between them."""
    special, parts = set(tokenizer.all_special_ids), list[list[int]]([[]])
    for token in tokens.tolist():
        if token in special:
            parts.append([])
        else:
            parts[-1].append(token)
    return _bounded_value(" | ".join(text for part in parts if part and (text := tokenizer.decode(part).strip())))


def _bounded_value(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _CHARACTERS:
        return f"{value[:_CHARACTERS]} ..."
    return value[:200] if isinstance(value, list) else value
