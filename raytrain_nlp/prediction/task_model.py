"""A model that predicts rows, with all that its task needs: weights, tokenizer, labels, generation."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.distributed.device import recorded_event, settle_device
from raytrain_nlp.prediction.batches import Encoder, PredictSpec, unpack_batch
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks import build_task


class TaskModel:
    """Predicts rows that are batches already. May be called from several threads.

    Args:
        threads: threads of torch on CPUs, where OMP_NUM_THREADS does not say it; None: as many as torch takes.
    """

    def __init__(self, spec: PredictSpec, threads: int | None = 1):
        job = spec.job
        settle_device(job.workers.use_gpu)
        import torch

        from raytrain_nlp.modeling.fused_norm import fuse_norms
        from raytrain_nlp.modeling.load import load_for_prediction
        from raytrain_nlp.modeling.tokenizer import load_tokenizer

        said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        if said or threads:
            torch.set_num_threads(int(said or threads or 1))
        self._labels, self._task = spec.labels, build_task(job.task)
        self._tokenizer = load_tokenizer(spec.tokenizer_dir)
        for folder in (spec.weights, job.model.name_or_path):
            if folder:
                storage_of(folder).fetch_tree(Path(folder))
        model = load_for_prediction(Path(spec.weights), job.model, self._task, spec.labels, self._tokenizer, spec.dtype)
        if job.workers.use_gpu:
            fuse_norms(model)
        self._batches = Batches(self._task, model, self._tokenizer, spec.generation, job.workers.use_gpu)

    def __call__(self, batches: list[bytes], beside: dict[int, str]) -> dict[int, dict[str, Any]]:
        """The predictions of rows by their places.

        Args:
            batches: of `Encoder`.
            beside: by place, what the task reads of a row besides its tokens.
        """
        if self._task.joins_rows:
            return {
                place: self._task.predict_row(features, beside[place])
                for place, features in self._joined(batches).items()
            }
        found: dict[int, dict[str, Any]] = {}
        for places, outputs in self._batches(batches):
            found |= zip(places.tolist(), self._task.predictions(outputs, self._labels, self._tokenizer), strict=True)
        return found

    def _joined(self, batches: list[bytes]) -> dict[int, list[dict[str, np.ndarray]]]:
        """By the place of a row the outputs of each of its rows of tokens."""
        found: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
        for places, outputs in self._batches(batches):
            for i, place in enumerate(places.tolist()):
                found[place].append({name: array[i] for name, array in outputs.items()})
        return found


class RowPredictor:
    """Predicts rows in memory, as `predict` does those of files.

    Call it with a list of rows; it returns what `predict` would add to each, in order: plain values, or `error` alone
    where a row has no prediction.
    """

    def __init__(self, spec: PredictSpec):
        self._encoder, self._model = Encoder(spec), TaskModel(spec, threads=None)

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        errors, beside, batches = self._encoder(rows)
        found = self._model(batches, beside)
        return [found[place] if place in found else {"error": errors[place]} for place in range(len(rows))]


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
