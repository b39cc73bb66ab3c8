"""Loaders of the rows that the user's code passes to `evaluate` and `predict`, and the job's own rows as the dataset
that `Trainer.train_dataset` and `eval_dataset` show to that code.

The rows may be as in the job's files, and are then tokenized exactly as `data.validation` is; tokenized already (with
`input_ids`), and are then padded as Hugging Face's collators do; or the trainer's own datasets. Each is scored once, on
one rank.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.plan import PlanSpec, split_batch
from raytrain_nlp.data.prepare import prepare_tokens
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.split import MicroBatch, Split, SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import IGNORED, CollateContext, Columns, Lengths, Place, Task
from raytrain_nlp.trainer.loader import FeedBatch, FeedDataset
from raytrain_nlp.user_code import UserObject

MicroBatches = Callable[[np.ndarray], tuple[dict[str, Any], int]]
"""From row numbers, int64 [rows], to the tensors of a forward and the number of rows or predicted tokens that its loss
is a mean over.
"""


class PlanRows(Dataset):
    """A split of the job as `Trainer.train_dataset` or `eval_dataset`: tokenized rows by number, blocks where the task
    packs.
    """

    def __init__(self, spec: SplitSpec):
        self.spec = spec

    def __len__(self) -> int:
        return self.spec.plan.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        tensors, _ = self.collate(np.array([row % len(self)]))
        return {name: tensor[0].tolist() for name, tensor in tensors.items()}

    @functools.cached_property
    def _split(self) -> Split:
        return Split(self.spec)

    @property
    def data_rows(self) -> int:
        """Rows of data that these are made of."""
        return self._split.store.data_rows(len(self))

    def columns(self, rows: np.ndarray, names: tuple[str, ...]) -> Columns:
        """Columns of the token store of some rows."""
        found = self._split.fetch(rows)
        return {name: found[name] for name in names}

    def collate(self, rows: np.ndarray) -> tuple[dict[str, Any], int]:
        """As `MicroBatches`."""
        split = self._split
        tensors = split.task.collate(split.fetch(rows), self.spec.context, Place(self.spec.plan.seed, 0, rows))
        weight = len(rows) if split.task.rows_weigh else split.weigh(tensors)
        return _as_torch(tensors), weight


class RowsLoader:
    """A rank's part of the evaluation batches of `num_rows` rows, collated in the rank's own process.

    Args:
        batch_rows: rows of a batch on each rank.
    """

    def __init__(self, dataset: Any, num_rows: int, collate: MicroBatches, batch_rows: int, world_size: int, rank: int):
        self.dataset = dataset
        self._rows, self._collate = np.arange(num_rows), collate
        self._batch_rows, self._world_size, self._rank = batch_rows * world_size, world_size, rank

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_rows)

    def __iter__(self) -> Iterator[FeedBatch]:
        for step in range(len(self)):
            batch = self._rows[step * self._batch_rows : (step + 1) * self._batch_rows]
            part = split_batch(batch, self._world_size, 1)[0][self._rank]
            shown = (
                part if len(part) else batch[:1]
            )  # a rank without rows repeats one, with weight 0: collectives need every rank
            tensors, weight = self._collate(shown)
            yield FeedBatch(
                tensors, MicroBatch(step, 0, part, weight if len(part) else 0, len(batch), 0, 0, 0, tensors)
            )


@dataclass
class RowsReader:
    """Makes loaders of the rows that user code passes to `evaluate` and `predict`, for one rank of a run."""

    job: TrainJob
    tokenizer_dir: str
    tokenizer: Any
    context: CollateContext
    scratch: Path
    code_folder: str
    arguments: Any
    """The run's `TrainingArguments`: read are `eval_batch_size`, `world_size` and `process_index`."""

    def loader(self, dataset: Any, columns: list[str]) -> RowsLoader:
        """A loader of the rows of a dataset.

        Args:
            columns: what the model's forward takes, and names of labels; other columns of tokenized rows are left out.

        Raises:
            ValueError: there are no rows, or one can be neither scored nor predicted.
        """
        if isinstance(dataset, PlanRows):
            return self._loader(dataset, len(dataset), dataset.collate)
        if isinstance(dataset, FeedDataset):
            raise ValueError("the training rows are a stream (data.streaming), which cannot be scored.")
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            dataset = list(dataset)
        if not len(dataset):
            raise ValueError("there are no rows to score.")
        first, task = dataset[0], build_task(self.job.task)
        if not isinstance(first, dict):
            raise ValueError(f"rows to score must be dicts, not {type(first).__name__}.")
        if "input_ids" in first:
            return self._loader(dataset, len(dataset), functools.partial(self._tokenized, dataset, columns))
        if task.check_row(first) is None or (self.job.trainer.preprocess and task.check_input(first) is not None):
            rows = PlanRows(self._prepared(dataset, task))
            return self._loader(rows, len(rows), rows.collate)
        if reason := task.check_input(first):
            raise ValueError(f"row 0 can be neither scored nor predicted: it has no input_ids, and {reason}.")
        if not task.joins_rows:
            return self._loader(
                dataset, len(dataset), lambda rows: self._collated(self._inputs(dataset, task, rows), task)
            )
        features = self._inputs(dataset, task, np.arange(len(dataset)))

        def collate(rows: np.ndarray) -> tuple[dict[str, Any], int]:
            return self._collated({name: [part[row] for row in rows] for name, part in features.items()}, task)

        return self._loader(dataset, len(features["input_ids"]), collate)

    def _loader(self, dataset: Any, num_rows: int, collate: MicroBatches) -> RowsLoader:
        return RowsLoader(
            dataset,
            num_rows,
            collate,
            self.arguments.eval_batch_size,
            self.arguments.world_size,
            self.arguments.process_index,
        )

    def _tokenized(self, dataset: Any, columns: list[str], rows: np.ndarray) -> tuple[dict[str, Any], int]:
        from transformers import DataCollatorForMultipleChoice, DataCollatorForSeq2Seq, DataCollatorWithPadding

        features = [
            {name: _plain(value) for name, value in dataset[int(row)].items() if name in columns} for row in rows
        ]
        listed = isinstance(features[0].get("labels"), list) and build_task(self.job.task).rows_weigh is False
        collator: Any = DataCollatorForSeq2Seq if listed else DataCollatorWithPadding
        if isinstance(features[0]["input_ids"][0], list):  # several sequences a row
            collator = DataCollatorForMultipleChoice
        batch = dict(collator(self.tokenizer)(features))
        return batch, self._weigh(batch)

    def _weigh(self, batch: dict[str, Any]) -> int:
        task, labels = build_task(self.job.task), batch.get("labels")
        if labels is None or task.rows_weigh:
            return len(batch["input_ids"])
        return int((labels[:, int(task.shifts_labels) :] != IGNORED).sum())

    def _inputs(self, dataset: Any, task: Task, rows: np.ndarray) -> Columns:
        """Tokens of rows without labels, as `raytrain-nlp predict` reads them."""
        found = [dataset[int(row)] for row in rows]
        for row, values in zip(rows, found, strict=True):
            if reason := task.check_input(values):
                raise ValueError(f"row {row} cannot be predicted: {reason}.")
        lengths = task.lengths(self.job.data.max_length, "validation")
        lengths = lengths if lengths.source else Lengths(self.job.data.max_length)
        columns = task.encode_input_rows(found, self.tokenizer, lengths).columns
        return {name: [np.asarray(value, dtype=np.int32) for value in column] for name, column in columns.items()}

    def _collated(self, tokens: Columns, task: Task) -> tuple[dict[str, Any], int]:
        inputs = task.collate_inputs(tokens, self.context)
        kept = {name: array for name, array in inputs.items() if name not in task.beside_inputs}
        return _as_torch(kept), len(tokens["input_ids"])

    def _prepared(self, dataset: Any, task: Task) -> SplitSpec:
        """Check, tokenize and pack rows as those of `data.validation` are, into a folder on this rank's disk."""
        job, folder = self.job, self.scratch / f"rows-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        source = folder / "rows.jsonl"
        with source.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(_plain(dataset[row]), ensure_ascii=False) + "\n" for row in range(len(dataset)))
        preprocess = (
            UserObject(job.trainer.preprocess, "trainer.preprocess", self.code_folder)
            if job.trainer.preprocess
            else None
        )
        lengths = task.lengths(job.data.max_length, "validation")
        prepare = PrepareSpec(job.task, self.tokenizer_dir, Path(self.tokenizer_dir).name, lengths, 0.0, preprocess)
        store = TokenStore(
            prepare_tokens(find_files([str(source)], "eval_dataset"), prepare, folder / "tokens", map, "eval_dataset")
        )
        if unseen := sorted(set(store.manifest["labels"]) - set(self.context.label_ids)):
            raise ValueError(f"rows to score have labels that training never saw: {', '.join(unseen[:5])}.")
        packing, blocks, rows = task.packing(job.data.max_length), None, store.num_rows
        if packing:
            blocks, _ = build_blocks(store, packing, [rows])
            rows = len(Blocks(blocks, packing))
        plan = PlanSpec(rows, 0, "sequential", self.arguments.eval_batch_size)
        return SplitSpec(
            str(store.folder), None, str(blocks) if blocks else None, packing, plan, None, job.task, self.context
        )


def _as_torch(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    made = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    return {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in made.items()}


def _plain(value: Any) -> Any:
    """Python's own lists and numbers of what a row may hold."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value
