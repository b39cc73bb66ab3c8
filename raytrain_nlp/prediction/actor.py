"""Predictions in an actor of Ray Data: a chunk of rows in, the same rows with predictions out, written as one part
file.

    {part, table, batches} --Predictor--> OUTPUT.parts/part-PIECE-CHUNK.arrow, one atomic write each

A part is there as a whole or not at all, and its name says which rows it holds: whoever continues makes what is
missing. Ray Data calls an actor for two chunks at a time: while the batches of one are given to the device, the
predictions of the other are read, made into columns and written.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.failures import told_plainly
from raytrain_nlp.prediction.batches import BESIDE, ERRORS, PredictSpec, unpacked
from raytrain_nlp.prediction.files import BAD, open_output
from raytrain_nlp.prediction.task_model import TaskModel
from raytrain_nlp.tasks import build_task

ERROR = "error"
"""Column that says why a row has no prediction."""
Found = list[dict[str, Any] | None]


class Predictor:
    """Holds the model. May be called from several threads."""

    def __init__(self, spec: PredictSpec):
        self._spec, self._task = spec, build_task(spec.job.task)
        self._model = TaskModel(spec)
        self._began: float | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        self._began = self._began or time.monotonic()
        with told_plainly():
            counts = [
                self._part(part, unpacked(table), list(batches))
                for part, table, batches in zip(batch["part"], batch["table"], batch["batches"], strict=True)
            ]
        seconds = time.monotonic() - self._began
        return {"part": list(batch["part"]), "rows": counts, "seconds": [seconds] * len(counts)}

    def _part(self, name: str, table: pa.Table, batches: list[bytes]) -> int:
        beside = {int(place): text for place, text in json.loads(table.schema.metadata[BESIDE]).items()}
        predicted = self._model(batches, beside)
        return self._write(name, table, [predicted.get(place) for place in range(len(table))])

    def _write(self, name: str, table: pa.Table, found: Found) -> int:
        known = table.schema.metadata
        errors = {int(place): error for place, error in json.loads(known[ERRORS]).items()}
        table = table.replace_schema_metadata({BAD: known[BAD]})
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
        if errors:
            reasons = pa.array([errors.get(place) for place in range(len(table))], pa.string())
            table = table.append_column(f"{self._spec.prefix}{ERROR}", reasons)
        with open_output(f"{self._spec.parts}/{name}") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return len(table)
