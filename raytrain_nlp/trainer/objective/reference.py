"""What the reference model says of the job's rows: computed once, before the first step, by the model that is about to
be trained, and kept in the run's folder, from where a resumed run reads it. So no second model is ever held.

    RUN/reference/SPLIT-FINGERPRINT.npy     float32 [rows, sequences], by row id
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain_nlp.compat.transformers import prepared_inputs
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.split import MicroBatch, Split, SplitSpec
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.errors import RunError
from raytrain_nlp.storage import Storage, shown
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tasks.objective import REFERENCE, Objective
from raytrain_nlp.trainer.loader import EvalLoader, Share
from raytrain_nlp.trainer.user_rows import PlanRows


class Reference:
    """The values of a run, of each split by its name.

    Args:
        folder: where they are kept; None: nowhere.
        store: what `folder` belongs to.
        splits: the splits by name.
        share: this rank's part.
        without_adapter: is the reference the model without its adapter? Else the whole model as it starts.
    """

    def __init__(
        self,
        folder: Path | None,
        store: Storage,
        splits: dict[str, SplitSpec],
        share: Share,
        without_adapter: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._folder, self._store, self._splits, self._share = folder, store, splits, share
        self._without_adapter, self._tell = without_adapter, tell
        self._values: dict[str, np.ndarray] = {}

    def beside(self, split: str) -> Callable[[MicroBatch], dict[str, Any]]:
        """What makes the further inputs of a micro-batch of a split, once the values are there."""

        def inputs(micro_batch: MicroBatch) -> dict[str, Any]:
            values = self._values[split]
            count = len(micro_batch.tensors["input_ids"])
            found = values[micro_batch.rows] if len(micro_batch.rows) else np.zeros((count, values.shape[1]), "f4")
            return {REFERENCE: torch.from_numpy(np.ascontiguousarray(found)).view(torch.int32)}

        return inputs

    def find_or_compute(self, trainer: Any, objective: Objective, untrained: bool) -> None:
        """Read the values that the run has, and compute those it lacks. Every rank must call it.

        Args:
            untrained: are the weights those that the run starts with?

        Raises:
            RunError: values are gone, and the model is not what it was at the start.
        """
        for split, spec in self._splits.items():
            if split in self._values:
                continue
            path = self._folder / f"{split}-{_key(spec)}.npy" if self._folder else None
            values = broadcast_object(_read(path, self._store) if path and self._share["rank"] == 0 else None)
            if values is None:
                if not untrained:
                    raise RunError(
                        f"the log-probabilities of the reference model are gone ({shown(path or Path(split))}), and "
                        f"the model has been trained since. Start again with --overwrite."
                    )
                self._tell(f"computing log-probabilities of the reference model for {spec.plan.num_rows:,} rows")
                values = self.compute_reference(trainer, objective, spec)
                if path and self._share["rank"] == 0:
                    with replacing(path, "wb") as file:
                        np.save(file, values, allow_pickle=False)
                    self._store.push(path)
            self._values[split] = values

    def compute_reference(self, trainer: Any, objective: Objective, spec: SplitSpec) -> np.ndarray:
        """Float32 [rows, sequences], the same on all ranks; each rank does a part of the rows."""
        size = trainer.args.eval_batch_size * self._share["world_size"]
        plan = PlanSpec(spec.plan.num_rows, 0, "group_by_length", size)
        ordered = replace(spec, plan=plan, token_counts=None)
        loader = EvalLoader(ordered, PlanRows(ordered), steps=Split(ordered).plan.steps_per_epoch, **self._share)
        plain, parts = trainer.accelerator.unwrap_model(trainer.model_wrapped), []
        off = self._without_adapter and hasattr(plain, "disable_adapter")
        with plain.disable_adapter() if off else contextlib.nullcontext():
            for batch in loader:
                rows = batch.micro_batch.rows
                with trainer.compute_loss_context_manager(), trainer._feed.without_logits(batch.micro_batch):
                    found = objective.reference(plain, prepared_inputs(trainer, batch))
                parts.append((rows, found[: len(rows)].float().cpu().numpy()))
        values = np.zeros((spec.plan.num_rows, parts[0][1].shape[1]), dtype=np.float32)
        for rows, found in sum(gather_objects(parts), []):
            values[rows] = found
        return values


def _key(spec: SplitSpec) -> str:
    """A fingerprint of the rows of a split."""
    parts = [Path(spec.tokens).name, Path(spec.rows_file or "").name, spec.plan.num_rows]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(path: Path, store: Storage) -> np.ndarray | None:
    if not path.exists() and not store.fetch(path):
        return None
    values: np.ndarray = np.load(path, allow_pickle=False)
    return values
