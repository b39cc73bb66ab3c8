"""Predictions in an actor of Ray Data: a chunk of rows in, the same rows with predictions out, written as one part
file.

    {part, table, batches} --Predictor--> OUTPUT.parts/part-PIECE-CHUNK.arrow, one atomic write each

A part is there as a whole or not at all, and its name says which rows it holds: whoever continues makes what is
missing. Ray Data calls an actor for two chunks at a time: while the batches of one are given to the device, the
predictions of the other are read, made into columns and written.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.data.prediction_files import BAD, open_output
from raytrain_nlp.distributed.device import recorded_event, settle_device
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.failures import told_plainly
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task
from raytrain_nlp.worker.prediction_input import BESIDE, ERRORS, PredictSpec, unpack_batch, unpacked

ERROR = "error"
"""Column that says why a row has no prediction."""
Found = list[dict[str, Any] | None]


class Predictor:
    """Holds the model. May be called from several threads."""

    def __init__(self, spec: PredictSpec):
        job = spec.job
        settle_device(job.workers.use_gpu)
        import torch

        from raytrain_nlp.modeling.fused_norm import fuse_norms
        from raytrain_nlp.modeling.load import load_for_prediction
        from raytrain_nlp.modeling.tokenizer import load_tokenizer

        threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        torch.set_num_threads(int(threads) if threads else 1)
        self._spec, self._task = spec, build_task(job.task)
        self._tokenizer = load_tokenizer(spec.tokenizer_dir)
        for folder in (spec.weights, job.model.name_or_path):
            if folder:
                storage_of(folder).fetch_tree(Path(folder))
        model = load_for_prediction(Path(spec.weights), job.model, self._task, spec.labels, self._tokenizer, spec.dtype)
        if job.workers.use_gpu:
            fuse_norms(model)
        self._batches = Batches(self._task, model, self._tokenizer, spec.generation, job.workers.use_gpu)
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
        found: Found = [None] * len(table)
        if self._task.joins_rows:
            beside = json.loads(table.schema.metadata[BESIDE])
            for place, features in self._joined(batches).items():
                found[place] = self._task.predict_row(features, beside[str(place)])
            return self._write(name, table, found)
        for places, outputs in self._batches(batches):
            rows = self._task.predictions(outputs, self._spec.labels, self._tokenizer)
            for place, row in zip(places.tolist(), rows, strict=True):
                found[place] = row
        return self._write(name, table, found)

    def _joined(self, batches: list[bytes]) -> dict[int, list[dict[str, np.ndarray]]]:
        """By the place of a row the outputs of each of its rows of tokens."""
        found: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
        for places, outputs in self._batches(batches):
            for i, place in enumerate(places.tolist()):
                found[place].append({name: array[i] for name, array in outputs.items()})
        return found

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


class Batches:
    """Runs a model over the batches of one chunk after the other, whoever asks."""

    def __init__(self, task: Any, model: Any, tokenizer: Any, generation: dict[str, Any], use_gpu: bool):
        self._task, self._tokenizer, self._generation = task, tokenizer, generation
        self._device = "cuda" if use_gpu else "cpu"
        self._model = model.to(self._device).eval()
        self._turn = threading.Lock()

    def __call__(self, batches: list[bytes]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Of each batch, or of parts of it: where its rows stand, and the model's outputs.

        A GPU gets all of them before the first output is read, and the next chunk's behind them: it waits for nobody.
        """
        import torch

        with self._turn, torch.inference_mode():
            outputs = [made for batch in batches for made in self._run(*unpack_batch(batch))]
            done = recorded_event() if self._device == "cuda" else None
        if done is not None:
            done.synchronize()
        for places, tensors in outputs:
            yield places, {key: tensor.numpy() for key, tensor in tensors.items()}

    def _run(self, places: np.ndarray, arrays: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """The outputs of a batch, on their way to the CPU's memory. Where the device's memory is not enough, those of
        its halves.
        """
        import torch

        try:
            beside = {key: torch.tensor(arrays[key]) for key in self._task.beside_inputs}
            inputs = {key: self._to_device(array) for key, array in arrays.items() if key not in beside}
            outputs = self._task.outputs(self._model, inputs, self._tokenizer, self._generation)
            made = {key: tensor.to("cpu", non_blocking=True) for key, tensor in outputs.items()}  # into pinned memory
            made |= beside
        except torch.OutOfMemoryError:
            if len(places) == 1:
                raise
            made = None
        if made is not None:
            yield places, made
            return
        half = (len(places) + 1) // 2
        for part in (slice(0, half), slice(half, None)):
            yield from self._run(places[part], {key: array[part] for key, array in arrays.items()})

    def _to_device(self, array: np.ndarray) -> Any:
        """An array as an int64 tensor on the device; nobody waits for the copy."""
        import torch

        tensor = torch.tensor(array)
        if self._device == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(torch.int64)
