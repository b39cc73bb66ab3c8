"""The labels of a job: which there are, which validation rows have one that training knows, and the accuracy of always
answering the most frequent one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.labels import label_ids, sorted_labels
from raytrain_nlp.config.tasks import labelled
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.split import Split
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.planning.heads import check_width, find_head, follow_head
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tasks import build_task


def find_labels(job: TrainJob, train: TokenStore) -> tuple[list[str], list[str]]:
    """The labels in the order of their ids, and notes for the user; no labels if the task has no classes.

    Args:
        train: the tokens of the training split.

    Raises:
        InputError: there are no labels, a single one, or too many, or the head of the model does not fit them.
    """
    task = build_task(job.task)
    if task.label_column is None:
        if (outputs := task.model_kwargs([]).get("num_labels")) and (head := find_head(job)):
            check_width(head, outputs)
        return [], []
    section = labelled(job.task)
    labels = section.label_names or sorted_labels(list(train.manifest["labels"]))
    if not labels:
        raise InputError(
            Problem(
                "data.train", f"no row has a label in column '{section.label_column}'", "Name the column with labels."
            )
        )
    if len(labels) < 2 and task.single_class:
        raise InputError(
            Problem(
                "data.train",
                f"all labels of column '{section.label_column}' are equal ({labels[0]!r})",
                "Classification needs two labels.",
            )
        )
    if problem := task.check_labels(labels):
        raise InputError(problem)
    if len(labels) > max(1000, train.num_rows // 2):
        raise InputError(
            Problem(
                "task.label_column",
                f"has {len(labels)} different labels in {train.num_rows} rows",
                "Name the column with classes.",
            )
        )
    head = find_head(job)
    return follow_head(labels, head) if head else (labels, [])


def find_known_rows(
    store: TokenStore, labels: list[str], max_bad_rows: float
) -> tuple[str | None, list[dict[str, Any]]]:
    """The rows of a validation split whose labels all occur in training.

    Args:
        labels: the labels of the training rows.
        max_bad_rows: `data.max_bad_rows`: a share of the rows if below 1, else a number of rows.

    Returns:
        The path of a .npy file with the numbers of these rows (int64, ascending) beside the tokens, or None if they are
        all rows. An entry of quarantine.jsonl for each other row.

    Raises:
        InputError: too many rows are bad or have unknown labels.
    """
    names = set(label_ids(labels))
    if names.issuperset(store.manifest["labels"]):
        return None, []
    column = store.column("label")
    known = np.array(
        [row in names for row in column] if isinstance(column[0], str) else [names.issuperset(row) for row in column]
    )
    unseen = []
    for row in np.flatnonzero(~known):
        source, line = store.locate(int(row))
        label = column[row] if isinstance(column[row], str) else next(name for name in column[row] if name not in names)
        unseen.append(
            {"source": source, "line": line, "reason": f"label '{label}' was never seen in training", "row": ""}
        )
    bad, total = len(unseen) + store.manifest["bad_rows"], store.num_rows + store.manifest["bad_rows"]
    if bad > (max_bad_rows * total if max_bad_rows < 1 else max_bad_rows):
        first = unseen[0]
        what = (
            f"{bad} of {total} rows are bad, more than data.max_bad_rows ({max_bad_rows:g}); e.g. "
            f"{first['source']}:{first['line']}: {first['reason']}"
        )
        raise InputError(Problem("data.validation", what, "Mend the rows, or raise data.max_bad_rows."))
    path = store.folder / f"rows-{hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]}.npy"
    with replacing(path, "wb") as file:
        np.save(file, np.flatnonzero(known).astype(np.int64))
    return str(path), unseen


def majority_accuracy(split: Split) -> float:
    """The accuracy of always answering the most frequent label, over the rows of a validation split (0 to 1)."""
    counts = split.store.value_counts("label", None if split.spec.rows_file else split.plan.spec.num_rows)
    ids = split.spec.context.label_ids
    known: Counter[int] = Counter()
    for label, count in counts.items():
        if label in ids:
            known[ids[label]] += count
    return max(known.values()) / known.total()
