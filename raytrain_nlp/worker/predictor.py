"""Predictions in an actor of Ray Data: a chunk of rows in, the same rows with predictions out, written as one part
file.

    pieces --read_chunks--> {part, table} --Predictor--> OUTPUT.parts/part-PIECE-CHUNK.arrow, one atomic write each

A part is there as a whole or not at all, and its name says which rows it holds: whoever continues makes what is
missing.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.prediction_files import BAD, open_output, part_name, to_table
from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import Piece
from raytrain_nlp.distributed.device import settle_device
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.failures import told_plainly
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Columns, Lengths
from raytrain_nlp.tasks.truncation import FULL
from raytrain_nlp.user_code import UserObject, describe

ERROR = "error"
"""Column that says why a row has no prediction."""


@dataclass(frozen=True)
class PredictSpec:
    """One prediction, as its actors see it. Plain values only."""

    job: TrainJob
    weights: str
    """Folder of a model or an adapter."""
    tokenizer_dir: str
    labels: list[str]
    context: CollateContext
    lengths: Lengths
    """Tokens a row is cut to."""
    parts: str
    """Where part files go."""
    chunk_rows: int
    batch_rows: int
    generation: dict[str, Any]
    prefix: str
    """Before the names of added columns."""
    preprocess: UserObject | None
    code_folder: str


def read_chunks(item: dict[str, Any], spec: PredictSpec) -> Iterator[dict[str, Any]]:
    """The rows of a piece in chunks of fixed size, but for the chunks that are done; rows that cannot be parsed are
    told beside them.
    """
    done, number = set(item["done"]), item["number"]
    rows = (row for row in read_rows(Piece(**item["piece"])) if isinstance(row, (Row, BadRow)))
    for chunk in itertools.count():
        taken = list(itertools.islice(rows, spec.chunk_rows))
        if not taken:
            return
        if part_name(number, chunk) not in done:
            bad = [
                {"source": item["piece"]["path"], "line": row.line + 1, "reason": row.reason, "row": row.text}
                for row in taken
                if isinstance(row, BadRow)
            ]
            table = to_table([row.values for row in taken if isinstance(row, Row)])
            yield {
                "part": part_name(number, chunk),
                "table": _packed(table.replace_schema_metadata({BAD: json.dumps(bad)})),
            }


class Predictor:
    """Holds the model; one chunk after the other."""

    def __init__(self, spec: PredictSpec):
        job = spec.job
        settle_device(job.workers.use_gpu)
        import torch

        from raytrain_nlp.modeling.load import load_trained
        from raytrain_nlp.modeling.tokenizer import load_tokenizer

        threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        torch.set_num_threads(int(threads) if threads else 1)
        self._spec, self._task = spec, build_task(job.task)
        self._tokenizer = load_tokenizer(spec.tokenizer_dir)
        self._device = "cuda" if job.workers.use_gpu else "cpu"
        for folder in (spec.weights, job.model.name_or_path):
            if folder:
                storage_of(folder).fetch_tree(Path(folder))
        self._model = (
            load_trained(Path(spec.weights), job.model, self._task, spec.labels, self._tokenizer)
            .to(self._device)
            .eval()
        )
        self._preprocess = spec.preprocess.load() if spec.preprocess else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        with told_plainly():
            counts = [
                self._part(part, _unpacked(table)) for part, table in zip(batch["part"], batch["table"], strict=True)
            ]
        return {"part": list(batch["part"]), "rows": counts}

    def _part(self, name: str, table: pa.Table) -> int:
        rows = table.to_pylist()
        found, errors = self.predict(rows)
        columns = dict.fromkeys(key for row in found if row for key in row)
        taken = [
            key
            for key in (*(columns or self._task.prediction_columns), ERROR)
            if f"{self._spec.prefix}{key}" in table.column_names
        ]
        if taken:  # in a row behind those that were looked at before the start
            what = f"has a column '{self._spec.prefix}{taken[0]}' already, where predictions would go"
            raise InputError(Problem("--input", what, "Give the new ones a prefix, e.g. --prefix model_."))
        for key in columns or self._task.prediction_columns[:1]:
            table = table.append_column(f"{self._spec.prefix}{key}", pa.array([(row or {}).get(key) for row in found]))
        if any(errors):
            table = table.append_column(f"{self._spec.prefix}{ERROR}", pa.array(errors, pa.string()))
        with open_output(f"{self._spec.parts}/{name}") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return len(rows)

    def predict(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any] | None], list[str | None]]:
        """For each row what was found, or why nothing was."""
        import torch

        found: list[dict[str, Any] | None] = [None] * len(rows)
        inputs, errors = self._checked(rows)
        columns = self._encoded(inputs, errors)
        good = [i for i, error in enumerate(errors) if error is None]
        if not good:
            return found, errors
        columns.pop(FULL, None)
        tokens = {key: [np.asarray(row, dtype=np.int32) for row in column] for key, column in columns.items()}
        order = np.argsort([-len(row) for row in tokens["input_ids"]], kind="stable")  # batches of rows of like length
        for start in range(0, len(order), self._spec.batch_rows):
            chosen = order[start : start + self._spec.batch_rows]
            arrays = self._task.collate_inputs(
                {key: [column[i] for i in chosen] for key, column in tokens.items()}, self._spec.context
            )
            tensors = {key: torch.from_numpy(array).to(self._device, torch.int64) for key, array in arrays.items()}
            with torch.inference_mode():
                results = list(
                    self._task.predict(self._model, tensors, self._spec.labels, self._tokenizer, self._spec.generation)
                )
            for i, result in zip(chosen, results, strict=True):
                found[good[i]] = result
        return found, errors

    def _encoded(self, inputs: list[Any], errors: list[str | None]) -> Columns:
        """Token columns of the rows without an error. One that the tokenizer or its template does not take gets its
        error here.
        """
        good = [i for i, error in enumerate(errors) if error is None]
        try:
            return (
                self._task.encode_inputs([inputs[i] for i in good], self._tokenizer, self._spec.lengths) if good else {}
            )
        except Exception:  # noqa: BLE001 - a template raises whatever it likes: each row by itself says which it was
            for i in good:
                try:
                    self._task.encode_inputs([inputs[i]], self._tokenizer, self._spec.lengths)
                except Exception as error:  # noqa: BLE001
                    errors[i] = self._task.refusal(error)
            good = [i for i in good if errors[i] is None]
            return (
                self._task.encode_inputs([inputs[i] for i in good], self._tokenizer, self._spec.lengths) if good else {}
            )

    def _checked(self, rows: list[dict[str, Any]]) -> tuple[list[Any], list[str | None]]:
        """Rows as the task reads them, and why one cannot be read."""
        inputs, errors = [], []
        for row in rows:
            values, error = dict(row), None
            if self._preprocess is not None:
                try:
                    values = self._preprocess(values)
                    error = "left out by trainer.preprocess" if values is None else None
                except Exception as caught:  # noqa: BLE001 - it is told beside the row
                    error = f"trainer.preprocess: {describe(caught)}"
            inputs.append(values)
            errors.append(error or self._task.check_input(values))
        return inputs, errors


def _packed(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
