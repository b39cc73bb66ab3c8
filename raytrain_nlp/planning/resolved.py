"""The result of resolving a job: what its workers receive, what became of its rows, and notes for the user."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.data.duplicates import Duplicates, count_duplicates
from raytrain_nlp.data.shards import TokenStore, open_store
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.planning.truncation import cut_lengths
from raytrain_nlp.planning.window_prefetch import WindowPreparer
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.storage.untrusted import parse_json
from raytrain_nlp.worker.spec import WorkerSpec

_SAMPLED_ROWS, _MOST_COMPARED = 200_000, 5_000_000
"""Rows of a split whose lengths are looked at, and rows of all splits up to which copies are counted."""


@dataclass(frozen=True)
class Resolved:
    """A resolved job. Dicts are by split: `train`, and `validation` or `validation.NAME` for each of several sets."""

    spec: WorkerSpec
    rows: dict[str, int]
    """Rows that are used; blocks if the task packs."""
    features: dict[str, int]
    """Features that the rows have become, in a task where a row may become several (question answering); else empty."""
    left_out: dict[str, int]
    """Rows for which the user's `preprocess` returned None, rows without a token to learn, and dropped copies."""
    bad_rows: dict[str, int]
    """Rows that cannot be used, validation rows with labels unknown in training included."""
    tokenized_rows: int
    """Rows that were tokenized now and not found in the cache."""
    dropped_rows: int
    """Rows of each epoch that `dataloader_drop_last` leaves out."""
    majority_accuracy: float | None
    """Accuracy (0 to 1) of always answering the most frequent label of the validation rows; None if the task has no
    single class for each row, or the job not exactly one validation set.
    """
    quarantine: list[tuple[str, Path | None, list[dict[str, Any]]]]
    """Split, file of left-out rows beside the tokens (or None), and further entries, for `write_quarantine`."""
    windows: WindowPreparer | None = None
    """Prepares the training rows if they are streamed; the counts above are then without them."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the job before it starts, a line each."""
    shares: list[str] = field(default_factory=list)
    """How much of each source of a mixture is used, a line each; else empty."""
    stores: dict[str, TokenStore] = field(default_factory=dict)
    """The tokens of each split; streamed rows have none here."""
    cut_rows: dict[str, int] = field(default_factory=dict)
    """Rows (and targets) that were truncated to `data.max_length` or the model's positions."""
    datasets: list[dict[str, Any]] = field(default_factory=list)
    """What the tracker is told of the data of each split (`tracking.datasets`)."""

    def count_duplicates(self) -> Duplicates | None:
        """Counts of copies among the training rows, and of validation rows that are training rows too. None if the rows
        are streamed, or more than five million.
        """
        if "train" not in self.stores or sum(store.num_rows for store in self.stores.values()) > _MOST_COMPARED:
            return None
        held = {split: store for split, store in self.stores.items() if split != "train"}
        return count_duplicates(self.stores["train"], held)

    def counts(self) -> dict[str, Any]:
        """The counts of rows by the names of `TrainResult`; for streamed rows those of the windows prepared so far."""
        streamed = self.windows.counts if self.windows else {}
        return {
            **{
                name: {**({"train": streamed[name]} if name in streamed else {}), **getattr(self, name)}
                for name in ("rows", "features", "bad_rows", "left_out", "cut_rows")
            },
            "tokenized_rows": self.tokenized_rows + streamed.get("tokenized_rows", 0),
            "dropped_rows": self.dropped_rows,
            "majority_accuracy": self.majority_accuracy,
        }

    def lengths(self) -> dict[str, dict[str, float]]:
        """For each split the mean and percentiles (`p5`, `p50`, `p95`, `p100`) of the tokens of a row, or of a block if
        the task packs, from a sample of a large split. If rows were truncated, also the figures of `cut_lengths`.
        """
        found = {}
        for split, spec in (("train", self.spec.train), *_splits(self.spec).items()):
            if isinstance(spec, SplitSpec):
                lengths = Split(spec).plan.lengths[: spec.plan.num_rows]
                sample = lengths[:: max(len(lengths) // _SAMPLED_ROWS, 1)]
                shares = {f"p{share}": float(np.percentile(sample, share)) for share in (5, 50, 95, 100)}
                found[split] = {**cut_lengths(open_store(spec.tokens).manifest), "mean": float(sample.mean()), **shares}
        return found


def write_quarantine(resolved: Resolved, path: Path) -> None:
    """Write all rows that the run leaves out to `path`, a JSON object for each: split, source, line, reason, row. No
    file is written if there are none.
    """
    path.unlink(missing_ok=True)  # an earlier driver's file
    if not any(file or unseen for _, file, unseen in resolved.quarantine):
        return
    with replacing(path, errors="backslashreplace") as out:  # a lone surrogate becomes a JSON escape
        for split, file, unseen in resolved.quarantine:
            if file is not None:
                with file.open(encoding="utf-8") as lines:
                    out.writelines(
                        json.dumps({"split": split, **parse_json(line)}, ensure_ascii=False) + "\n" for line in lines
                    )
            out.writelines(json.dumps({"split": split, **row}, ensure_ascii=False) + "\n" for row in unseen)


def _splits(spec: WorkerSpec) -> dict[str, SplitSpec]:
    """The validation splits by name: `validation`, or `validation.NAME` for each of several sets."""
    if spec.named_validations:
        return {f"validation.{name}": part for name, part in spec.named_validations.items()}
    return {"validation": spec.validation} if spec.validation else {}
