"""Rows on their way to a predictor, in tasks of Ray Data on CPUs: read, checked, tokenized and padded, so that the
process with the model has nothing else to do than to run it.

    pieces --read_chunks--> {part, table, batches}, a row of it for each part file

`table` holds the rows of the part and what is known of them (`BAD`, `ERRORS` in its schema), `batches` the model's
inputs: rows of like length together, the longest first. Both are Arrow streams.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import Piece
from raytrain_nlp.failures import told_plainly
from raytrain_nlp.modeling.tokenizer import load_tokenizer
from raytrain_nlp.prediction.files import BAD, part_name, to_table
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import CollateContext, Columns, Encoded, Lengths, Task
from raytrain_nlp.tasks.truncation import FULL
from raytrain_nlp.user_code import UserObject, describe

ERRORS = b"raytrain_nlp.errors"
"""In a table's schema: why rows have no prediction, as JSON {place: reason}."""
BESIDE = b"raytrain_nlp.beside"
"""In a table's schema: what predictions read of rows besides their tokens, as JSON {place: text}."""
_PLACES = "raytrain_nlp.places"
"""Column of a batch: where its rows stand in their table."""
_SHAPES = b"raytrain_nlp.shapes"
"""In the schema of a batch: the shape of each input, as JSON."""
_TOKENS = 16_384
"""Tokens of a forward on a GPU, those to be generated included: enough to be bound by arithmetic, not by launches."""


@dataclass(frozen=True)
class BatchSize:
    """How many rows go through the model at once."""

    rows: int | None
    """At most so many; None: any number."""
    tokens: int | None = None
    """At most so many tokens, padding included, where that is a row at least; None: any number."""
    new_tokens: int = 0
    """Tokens that may be generated for a row."""
    beams: int = 1

    def slices(self, lengths: np.ndarray) -> Iterator[slice]:
        """Consecutive batches of rows whose lengths fall: int64 [rows]."""
        start = 0
        while start < len(lengths):
            most = len(lengths) - start if self.rows is None else self.rows
            if self.tokens is not None:
                most = min(most, self.tokens // ((int(lengths[start]) + self.new_tokens) * self.beams))
            yield slice(start, start + max(most, 1))
            start += max(most, 1)


def batch_size(asked: int | None, job: TrainJob, generation: dict[str, Any], writes_text: bool) -> BatchSize:
    """Rows as they are asked for; else on a GPU as many as make up a number of tokens, on CPUs as many as an evaluation
    of the run takes.
    """
    if asked is not None or not job.workers.use_gpu:
        return BatchSize(asked or job.arguments().get("per_device_eval_batch_size", 8))
    new = (generation.get("max_new_tokens") or generation.get("max_length") or 20) if writes_text else 0
    beams = max(generation.get("num_beams") or 1, generation.get("num_return_sequences") or 1)
    return BatchSize(None, _TOKENS, new, beams)


@dataclass(frozen=True)
class PredictSpec:
    """One prediction, as its tasks and actors see it. Plain values only."""

    job: TrainJob
    weights: str
    """Folder of a model or an adapter."""
    dtype: str | None
    """Of the weights in memory; None: as the job says."""
    tokenizer_dir: str
    labels: list[str]
    context: CollateContext
    lengths: Lengths
    """Tokens a row is cut to."""
    parts: str
    """Where part files go."""
    chunk_rows: int
    """Rows of a part."""
    batch: BatchSize
    generation: dict[str, Any]
    prefix: str
    """Before the names of added columns."""
    preprocess: UserObject | None
    code_folder: str


def read_chunks(item: dict[str, Any], spec: PredictSpec) -> Iterator[dict[str, Any]]:
    """The rows of a piece in chunks of fixed size, but for the chunks that are done; rows that cannot be parsed are
    told beside them.
    """
    with told_plainly():
        done, number = set(item["done"]), item["number"]
        rows = (row for row in read_rows(Piece(**item["piece"])) if isinstance(row, (Row, BadRow)))
        encoder = Encoder(spec)
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
                errors, beside, batches = encoder(table.to_pylist())
                known = {BAD: json.dumps(bad), ERRORS: json.dumps(errors), BESIDE: json.dumps(beside)}
                yield {
                    "part": part_name(number, chunk),
                    "table": packed(table.replace_schema_metadata(known)),
                    "batches": batches,
                }


class Encoder:
    """Makes inputs of a model of rows; of a prediction, in one process."""

    def __init__(self, spec: PredictSpec):
        self._spec, self._task = spec, build_task(spec.job.task)
        self._tokenizer = load_tokenizer(spec.tokenizer_dir)
        self._preprocess = spec.preprocess.load() if spec.preprocess else None

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[dict[int, str], dict[int, str], list[bytes]]:
        """Which rows can have no prediction, and why; what predictions of the others read of them; the others as
        batches.
        """
        inputs, errors = self._checked(rows)
        encoded = encode_rows(self._task, inputs, errors, self._tokenizer, self._spec.lengths)
        good = np.array([place for place, error in enumerate(errors) if error is None], dtype=np.int64)
        told = {place: error for place, error in enumerate(errors) if error is not None}
        texts = {place: self._task.read_beside(inputs[place]) for place in good.tolist()}
        beside = {place: text for place, text in texts.items() if text is not None}
        return told, beside, list(self._batches(good[encoded.rows], encoded.columns)) if len(good) else []

    def _batches(self, places: np.ndarray, columns: Columns) -> Iterator[bytes]:
        columns.pop(FULL, None)
        tokens = {key: [np.asarray(row, dtype=np.int32) for row in column] for key, column in columns.items()}
        lengths = np.array([len(row) for row in tokens["input_ids"]], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")  # batches of rows of like length; most memory is taken first
        for part in self._spec.batch.slices(lengths[order]):
            chosen = order[part]
            batch = {key: [column[i] for i in chosen] for key, column in tokens.items()}
            yield pack_batch(places[chosen], self._task.collate_inputs(batch, self._spec.context))

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


def encode_rows(task: Task, rows: list[Any], errors: list[str | None], tokenizer: Any, lengths: Lengths) -> Encoded:
    """Tokens of the rows without an error. One that the tokenizer or its template does not take gets its error here;
    `Encoded.rows` counts those without.
    """
    good = [i for i, error in enumerate(errors) if error is None]
    try:
        return task.encode_input_rows([rows[i] for i in good], tokenizer, lengths) if good else Encoded({}, [])
    except Exception:  # noqa: BLE001 - a template raises whatever it likes: each row by itself says which it was
        for i in good:
            try:
                task.encode_input_rows([rows[i]], tokenizer, lengths)
            except Exception as error:  # noqa: BLE001
                errors[i] = task.refusal(error)
        good = [i for i in good if errors[i] is None]
        return task.encode_input_rows([rows[i] for i in good], tokenizer, lengths) if good else Encoded({}, [])


def pack_batch(places: np.ndarray, inputs: dict[str, np.ndarray]) -> bytes:
    """A batch as an Arrow stream: where its rows stand, int64 [rows]; inputs, integers [rows, ..., longest row]."""
    columns = {
        key: pa.FixedSizeListArray.from_arrays(array.ravel(), math.prod(array.shape[1:]))
        for key, array in inputs.items()
    }
    shapes = json.dumps({key: array.shape for key, array in inputs.items()})
    return packed(pa.table({_PLACES: places, **columns}).replace_schema_metadata({_SHAPES: shapes}))


def unpack_batch(data: bytes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What `pack_batch` was given; the arrays cannot be written to."""
    table = unpacked(data)
    columns = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(shape)
        for name, shape in json.loads(table.schema.metadata[_SHAPES]).items()
    }
    return table[_PLACES].to_numpy(), columns


def packed(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
