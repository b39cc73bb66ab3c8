"""`predict`: runs a run's model over files of rows with Ray Data. Each row is predicted once and written in the order
of the input, also if the prediction is killed and run again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.cluster.connection import connect_ahead
from raytrain_nlp.cluster.session import check_workers
from raytrain_nlp.config import TrainJob, load_job, public_values, without_passwords
from raytrain_nlp.config.auto import without_values
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.host.signals import stoppable
from raytrain_nlp.prediction.flow import make_parts
from raytrain_nlp.prediction.parts import Layout, describe_prediction, find_parts, join_parts
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer
from raytrain_nlp.run.saved_run import Run, Weights, find_run, find_weights
from raytrain_nlp.storage.atomic import temporary_folder

if TYPE_CHECKING:
    from raytrain_nlp.data.reading.sources import SourceFile
    from raytrain_nlp.prediction.batches import PredictSpec

CHUNK_ROWS = 512
"""Rows of a part. A kill loses parts that are being made; batches are formed of rows of similar length within a
part.
"""
_FAST_CHUNK_ROWS = 2_048
"""Rows of a part if a GPU predicts without generating text, which it does for thousands of rows a second."""
_FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}


@dataclass(frozen=True)
class PredictResult(Result):
    """The result of a prediction."""

    output: str
    """The file that was written."""
    rows: int
    """Rows in it."""
    errors: int
    """Rows without a prediction; their column `error` says why."""
    bad_rows: int
    """Rows that could not be parsed; they are in `quarantine`."""
    found_rows: int
    """Rows that an interrupted prediction had made before."""
    seconds: float
    """Seconds of the whole call."""
    rows_per_second: float | None = None
    """Rows predicted by this call, by the seconds that the predictors worked on them, without their start; None if
    there were none.
    """
    quarantine: str | None = None
    """The file with the rows that could not be parsed (JSON Lines); None if there are none."""


@stoppable("stopped. What is done is kept; run it again to continue.")
def predict(
    run: str | Path,
    input: str | list[str],
    output: str | Path,
    *,
    checkpoint: str | int | None = None,
    generation: dict[str, Any] | None = None,
    batch_size: int | None = None,
    prefix: str = "",
    overwrite: bool = False,
    overrides: Iterable[str] = (),
    verbose: bool = False,
    observer: Observer | None = None,
) -> PredictResult:
    """Add a run's predictions to the rows of files. If it is killed, the same call predicts the rows that are missing.

    Args:
        run: folder of a run, or of a sweep (its best trial).
        input: file, glob, folder, `s3://`, `hf://`, or a list of them.
        output: the file to write, whose suffix is .parquet, .jsonl or .csv.
        checkpoint: `best`, `last` or a step; None: the run's `model/`, or if there is none its newest good checkpoint.
        generation: arguments of `generate` for tasks that write text, e.g. max_new_tokens.
        batch_size: rows of a forward pass at most. Default: on a GPU as many as have 16,384 tokens together (including
            those that may be generated), on CPUs the job's per_device_eval_batch_size.
        prefix: is put before the names of the added columns.
        overwrite: replace `output`, and delete parts of an interrupted prediction with another model or input. Parts of
            this prediction are kept.
        overrides: `dotted.key=value` of the job, e.g. `workers.num_workers=4`; `training.bf16=false` computes in fp32
            on a GPU, too.
        verbose: show what Ray and the libraries print.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: run, input or output are wrong; nothing has been written.
        RunError: the prediction failed; finished parts are kept.

    Example:
        >>> import raytrain_nlp
        >>> done = raytrain_nlp.predict("runs/quickstart", "new.jsonl", "predicted.jsonl")  # doctest: +SKIP
        >>> done.rows, done.errors  # doctest: +SKIP
        (3, 0)
    """
    from raytrain_nlp.prediction.plan import generation_of, weights_dtype

    observer = observer or Observer()
    started = time.monotonic()
    found, target = find_run(run), str(output)
    of_machine = settled(job_for_prediction(found, overrides))
    job = of_machine.job
    kind = next((kind for suffix, kind in _FORMATS.items() if target.lower().endswith(suffix)), None)
    problems = check_workers(job)
    if kind is None:
        problems.append(
            Problem("--output", f"has no known suffix ({target})", f"Name a file that ends with {', '.join(_FORMATS)}.")
        )
    if problems or kind is None:
        raise InputError(problems)
    weights = find_weights(found, checkpoint)
    observer.tell(of_machine.line)
    observer.stage("looking at the data")
    files = input_files(input, job, prefix)
    options = {**generation_of(job), **(generation or {})}
    parts, layout = f"{target}.parts", _layout(job, files)
    done = find_parts(
        target,
        parts,
        describe_prediction(found, weights, job, files, options, prefix, layout, weights_dtype(job)),
        overwrite,
    )
    with _scratch(found, weights) as scratch, connect_ahead(job, verbose, say=observer.stage) as connection:
        observer.stage("reading the model")
        spec = _spec(found, job, weights, parts, layout, scratch, options, batch_size, prefix, observer)
        connection()
        rate = make_parts(spec, files, layout, done, verbose, observer)
    observer.stage("putting the parts together")
    made = join_parts(target, parts, kind, set(done), prefix)
    return PredictResult(target, **made, seconds=time.monotonic() - started, rows_per_second=rate)


@contextlib.contextmanager
def _scratch(run: Run, weights: Weights) -> Iterator[Path]:
    """The folder for weights consolidated from a checkpoint, which all nodes can read; removed afterwards. For the
    weights in `model/`, which are read in place, it is the run's folder, and nothing is written (the run may belong to
    somebody else).
    """
    if weights.checkpoint is None:
        yield run.paths.run
        return
    with temporary_folder(run.paths.run, "weights-") as folder:
        try:
            yield folder
        finally:
            run.paths.store.delete_tree(folder)


def job_for_prediction(run: Run, overrides: Iterable[str]) -> TrainJob:
    """The run's job for a machine that only predicts: its workers are chosen anew, and no weights are sharded."""
    job = load_job({**without_values(public_values(run.job), run.chosen), "deepspeed": {"zero_stage": 0}}, overrides)
    if job.lora is not None and job.model.config is not None:  # an adapter on a base model from scratch
        job = job.model_copy(update={"model": job.model.model_copy(update={"name_or_path": run.base, "config": None})})
    return job


def input_files(specs: str | list[str], job: TrainJob, prefix: str) -> list[Any]:
    """The files of the input. Raises `InputError` if they lack a column that the task reads, or have one that a
    prediction would add.
    """
    from raytrain_nlp.config.data import sources_of
    from raytrain_nlp.data.reading.sources import find_files
    from raytrain_nlp.planning.inputs import check_choice, check_columns, check_free, check_repeated
    from raytrain_nlp.prediction.actor import ERROR
    from raytrain_nlp.tasks import build_task

    files = find_files(sources_of(specs), "--input")
    added = [f"{prefix}{name}" for name in (*build_task(job.task).prediction_columns, ERROR)]
    required = None if job.trainer.preprocess else build_task(job.task).input_columns()
    if (
        problems := check_repeated(files, required, "--input")
        or check_columns(files, required or [], "--input")
        or check_choice(files, () if required is None else build_task(job.task).input_choice, "--input")
        or check_free(files, added, "--input")
    ):
        raise InputError(problems)
    return files


def _layout(job: TrainJob, files: list[SourceFile]) -> Layout:
    from raytrain_nlp.tasks import build_task

    fast = job.workers.use_gpu and not build_task(job.task).writes_text
    return Layout.of(files, _FAST_CHUNK_ROWS if fast else CHUNK_ROWS)


def _spec(
    run: Run,
    job: TrainJob,
    weights: Weights,
    parts: str,
    layout: Layout,
    scratch: Path,
    options: dict[str, Any],
    batch_size: int | None,
    prefix: str,
    observer: Observer,
) -> PredictSpec:
    from raytrain_nlp.prediction.plan import plan_prediction
    from raytrain_nlp.verbs.export import write_weights

    folder = weights.folder
    if weights.checkpoint:
        folder = scratch / "model"
        write_weights(run, weights, folder, None, False, observer.stage)
        run.paths.store.push_tree(scratch, again=True)
    spec = plan_prediction(
        without_passwords(job), weights.folder, run.tokenizer, run.labels, options, batch_size, run.code_folder
    )
    return replace(
        spec,
        weights=str(folder),
        parts=parts if "://" in parts else os.path.abspath(os.path.expanduser(parts)),
        chunk_rows=layout.chunk_rows,
        prefix=prefix,
    )
