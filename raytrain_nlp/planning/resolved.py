"""What resolving a job has found: what its workers are given, what became of its rows, what its user should know."""

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
from raytrain_nlp.worker.spec import WorkerSpec

_SAMPLED_ROWS, _MOST_COMPARED = 200_000, 5_000_000


@dataclass(frozen=True)
class Resolved:
    """What `resolve` found out."""

    spec: WorkerSpec
    rows: dict[str, int]
    """Rows used, for each split; blocks, where the task packs."""
    features: dict[str, int]
    """What they have become, where the task joins rows of tokens; else nothing."""
    left_out: dict[str, int]
    """Rows the user's `preprocess` left out, and those of which nothing is learned."""
    bad_rows: dict[str, int]
    tokenized_rows: int
    """Rows tokenized now, not found in the cache."""
    dropped_rows: int
    majority_accuracy: float | None
    """What always answering the most frequent label would score on the validation rows."""
    quarantine: list[tuple[str, Path | None, list[dict[str, Any]]]]
    windows: WindowPreparer | None = None
    """What prepares the training rows, where they are streamed; the counts above then leave them out."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the job before it starts, a line each."""
    shares: list[str] = field(default_factory=list)
    """Of a mixture, how much is seen of each source, a line each."""
    stores: dict[str, TokenStore] = field(default_factory=dict)
    """The tokens of each split; none of streamed rows."""
    cut_rows: dict[str, int] = field(default_factory=dict)
    """Rows of which tokens were left out, as they had more than they may have."""

    def count_duplicates(self) -> Duplicates | None:
        """Copies among training rows, and validation rows that are training rows; None of streamed rows, and of more
        than can be compared in some seconds.
        """
        if "train" not in self.stores or sum(store.num_rows for store in self.stores.values()) > _MOST_COMPARED:
            return None
        held = {split: store for split, store in self.stores.items() if split != "train"}
        return count_duplicates(self.stores["train"], held)

    def counts(self) -> dict[str, Any]:
        """Rows by what became of them; of streamed ones those of the windows prepared so far."""
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
        """Tokens of a row (of a block, where the task packs) in each split, of a sample of a large one; of rows that
        were cut also those before.
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
    """All rows left out of the run, one JSON object a line: split, source, line, reason, row."""
    path.unlink(missing_ok=True)  # of the driver before this one
    if not any(file or unseen for _, file, unseen in resolved.quarantine):
        return
    with replacing(path, errors="backslashreplace") as out:  # a lone surrogate then is a JSON escape
        for split, file, unseen in resolved.quarantine:
            if file is not None:
                with file.open(encoding="utf-8") as lines:
                    out.writelines(
                        json.dumps({"split": split, **json.loads(line)}, ensure_ascii=False) + "\n" for line in lines
                    )
            out.writelines(json.dumps({"split": split, **row}, ensure_ascii=False) + "\n" for row in unseen)


def _splits(spec: WorkerSpec) -> dict[str, SplitSpec]:
    """The validation splits by their names in the job: `validation`, or `validation.NAME` of each of several sets."""
    if spec.named_validations:
        return {f"validation.{name}": part for name, part in spec.named_validations.items()}
    return {"validation": spec.validation} if spec.validation else {}
