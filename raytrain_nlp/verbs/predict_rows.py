"""Predicts rows in memory, in this process and without Ray: for a notebook, a pipe, or a service of one's own."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import find_run, find_weights
from raytrain_nlp.verbs.predict import input_files, job_for_prediction

if TYPE_CHECKING:
    from raytrain_nlp.data.reading.rows import BadRow, Row
    from raytrain_nlp.prediction.task_model import RowPredictor

CHUNK_ROWS = 256
"""Rows that are read before the first of them is predicted. Batches are formed of rows of similar length among them."""
STANDARD = "-"
"""The name of standard input and output on a command line."""


def load_predictor(
    run: str | Path,
    *,
    checkpoint: str | int | None = None,
    generation: dict[str, Any] | None = None,
    batch_size: int | None = None,
    overrides: Iterable[str] = (),
    observer: Observer | None = None,
) -> RowPredictor:
    """Load the model of a run to predict rows in this process. If the job uses no GPU, the process sees none
    afterwards.

    Args:
        run: folder of a run, or of a sweep (its best trial).
        checkpoint: `best`, `last` or a step; None: the run's `model/`, or if there is none its newest good checkpoint.
        generation: arguments of `generate` for tasks that write text, e.g. max_new_tokens.
        batch_size: rows of a forward pass at most; default: as in `predict`.
        overrides: `dotted.key=value` of the job.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: there is no such run or checkpoint.

    Example:
        >>> import raytrain_nlp
        >>> classify = raytrain_nlp.load_predictor("runs/quickstart")  # doctest: +SKIP
        >>> classify([{"text": "Returns the indices that would sort an array."}])[0]["prediction"]  # doctest: +SKIP
        'numpy'
    """
    from raytrain_nlp.prediction.plan import generation_of, plan_prediction
    from raytrain_nlp.prediction.task_model import RowPredictor
    from raytrain_nlp.verbs.export import write_weights

    observer = observer or Observer()
    found = find_run(run)
    of_machine = settled(job_for_prediction(found, overrides))
    job, weights = of_machine.job, find_weights(found, checkpoint)
    observer.tell(of_machine.line)
    observer.stage("reading the model")
    options = {**generation_of(job), **(generation or {})}
    with contextlib.ExitStack() as stack:
        folder = weights.folder
        if weights.checkpoint:
            folder = stack.enter_context(scratch_folder()) / "model"
            write_weights(found, weights, folder, None, False, observer.stage)
        spec = plan_prediction(job, folder, found.tokenizer, found.labels, options, batch_size, found.code_folder)
        with _no_progress_bars():
            return RowPredictor(spec)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """While inside, transformers draws no progress bar of weights being loaded."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class StreamResult(Result):
    """Counts of the rows that `predict_stream` has read."""

    rows: int
    """Rows in the output."""
    errors: int
    """Rows without a prediction; their key `error` says why."""
    bad_rows: int
    """Rows that could not be parsed. They are not in the output; the observer was warned of each."""


def predict_stream(
    predictor: RowPredictor,
    rows: Iterable[Row | BadRow],
    output: BinaryIO,
    prefix: str,
    observer: Observer,
) -> StreamResult:
    """Write each row with its prediction as a line of JSON, in the order of the rows, chunk by chunk while they are
    read.

    Args:
        output: a file opened for writing bytes.
        prefix: is put before the names of the added keys.
        observer: is warned of rows that could not be parsed.

    Raises:
        InputError: a row has a key of that name already; the rows before its chunk have been written.
    """
    from raytrain_nlp.data.reading.rows import BadRow

    count = errors = bad = 0
    source = iter(rows)
    while taken := list(itertools.islice(source, CHUNK_ROWS)):
        good = []
        for row in taken:
            if isinstance(row, BadRow):
                bad += 1
                observer.warn(f"--input: line {row.line + 1} is left out: {row.reason}")
            else:
                good.append(row.values)
        for values, found in zip(good, predictor(good), strict=True):
            added = {f"{prefix}{key}": value for key, value in found.items()}
            if taken_names := added.keys() & values.keys():
                what = f"has a column '{min(taken_names)}' already, where predictions would go"
                raise InputError(Problem("--input", what, "Give the new ones a prefix, e.g. --prefix model_."))
            output.write(json.dumps({**values, **added}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            errors += "error" in found
        output.flush()
        count += len(good)
    return StreamResult(count, errors, bad)


def rows_of_input(sources: list[str], standard_input: BinaryIO, run: str | Path, prefix: str) -> Iterator[Any]:
    """The rows of files, or those of JSON Lines on standard input.

    Args:
        sources: files, as `input` of `predict`; or `["-"]` for standard input.
        run: the run whose task reads the rows.
        prefix: see `predict_stream`.

    Raises:
        InputError: the files do not exist, lack a column, or have one that a prediction would add.
    """
    from raytrain_nlp.data.reading.json_rows import row_of_line
    from raytrain_nlp.data.reading.readers import read_rows
    from raytrain_nlp.data.reading.rows import BadRow, Row
    from raytrain_nlp.data.reading.sources import split_file

    if sources != [STANDARD]:
        files = input_files(sources, job_for_prediction(find_run(run), ()), prefix)
        found = (row for file in files for piece in split_file(file) for row in read_rows(piece))
    else:
        found = (row_of_line(number, line) for number, line in enumerate(standard_input))
    return (row for row in found if isinstance(row, (Row, BadRow)))
