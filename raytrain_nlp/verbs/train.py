"""`train`: one run from job to model, in the driver. What the workers do is in `worker/loop.py`."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.cluster.connection import Connection, connect_ahead
from raytrain_nlp.cluster.run_metrics import exported
from raytrain_nlp.cluster.session import check_workers, is_local
from raytrain_nlp.config import TrainJob, dump_job, load_job, public_values
from raytrain_nlp.config.load import JobSource
from raytrain_nlp.errors import InputError, RunError
from raytrain_nlp.host import devices
from raytrain_nlp.host.signals import stoppable
from raytrain_nlp.launch.elastic import ElasticFit
from raytrain_nlp.launch.fit import Fit, has_moved, load_libraries
from raytrain_nlp.launch.parallel_map import map_beside_training, map_on_cluster
from raytrain_nlp.memory.available import find_available, process_measured
from raytrain_nlp.paths import RunPaths, read_json
from raytrain_nlp.redaction import masked_address
from raytrain_nlp.results import Result
from raytrain_nlp.run.estimates import find_estimate
from raytrain_nlp.run.faults import faults_of
from raytrain_nlp.run.interruption import stopped, stops_at_checkpoint
from raytrain_nlp.run.observer import Observer, followed
from raytrain_nlp.run.record import RunRecord, check_data, check_name, check_storage, flatten, now, open_run
from raytrain_nlp.run.row_notes import rows_are_noted
from raytrain_nlp.run.stop_request import forget
from raytrain_nlp.run.sync import fetched, synchronized
from raytrain_nlp.storage import open_storage, shown
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tracking.events import EventLog, read_events
from raytrain_nlp.tracking.mirrors import Mirror
from raytrain_nlp.tracking.tracker import Tracker

if TYPE_CHECKING:
    from raytrain_nlp.data.reading.sources import SourceFile
    from raytrain_nlp.planning.inputs import Files
    from raytrain_nlp.planning.resolved import Resolved
    from raytrain_nlp.verbs.fitting import Fitted


STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
"""MLflow's status of a run that has ended -> `status` in the run's record."""
Launch = Callable[[TrainJob, Any, RunPaths], dict[str, Any]]
"""Runs a `WorkerSpec` on workers and returns what the first worker returns: a `Fit`, or a worker pool that stays."""


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished run. Dicts of rows are by split: `train`, and `validation` or `validation.NAME` for each of several
    validation sets.
    """

    run_dir: str
    mlflow_run_id: str | None
    metrics: dict[str, float]
    """The final `eval_*` and `train_*` figures, under their Hugging Face names."""
    checkpoint: str | None
    """The last checkpoint; None if none was saved."""
    model_dir: str
    """The trained model, as a plain Hugging Face directory."""
    global_step: int
    epoch: float
    world_size: int
    rows: dict[str, int] = field(default_factory=dict)
    """Rows that were used; blocks if the task packs."""
    features: dict[str, int] = field(default_factory=dict)
    """Features that the rows have become, in a task where a row may become several (question answering); else empty."""
    bad_rows: dict[str, int] = field(default_factory=dict)
    """Rows that could not be used; they are in quarantine.jsonl."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows for which the user's `preprocess` returned None, rows without a token to learn, and dropped copies."""
    cut_rows: dict[str, int] = field(default_factory=dict)
    """Rows (and targets) that were truncated to data.max_length or the model's positions."""
    dropped_rows: int = 0
    """Rows of each epoch that dataloader_drop_last left out."""
    tokenized_rows: int = 0
    """Rows that this run tokenized; 0 if it found all of them prepared."""
    labels: list[str] = field(default_factory=list)
    """The names of the classes in the order of their ids; empty if the task has none."""
    majority_accuracy: float | None = None
    """Accuracy (0 to 1) of always answering the most frequent label of the validation rows; None if that has no meaning
    for the task.
    """
    best_step: int | None = None
    """Step of the best model, if the job chooses one."""
    ended_early: str | None = None
    """Why the run ended before its last step; None if it did not."""
    restarts: int = 0
    """How often workers were started again, by all drivers of the run."""
    tracking_uri: str | None = None
    """MLflow's tracking URI without passwords; None if the run is not tracked."""


@stoppable("stopped before the workers started. Run the same command again.")
def train(
    job: JobSource,
    *,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    observer: Observer | None = None,
) -> TrainResult:
    """Train a job and return its result.

    Args:
        job: path of a job file, a dict of its sections, or a `TrainJob`.
        overrides: `dotted.key=value`, as `--set`.
        resume: continue the run of this name from its newest good checkpoint.
        overwrite: delete the run of this name first.
        verbose: show what Ray and the libraries print.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: the job, its data or its model are wrong; nothing has been started.
        RunError: the run failed. It can be resumed from its newest checkpoint.

    Example:
        >>> import raytrain_nlp
        >>> job, quick = "jobs/quickstart.yaml", ["training.max_steps=20"]
        >>> result = raytrain_nlp.train(job, overrides=quick)  # doctest: +SKIP
        >>> result.global_step, result.model_dir  # doctest: +SKIP
        (20, '...quickstart/model')
        >>> raytrain_nlp.train({"task": {"type": "sorting"}})  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        raytrain_nlp.errors.InputError: task.type: unknown type ('sorting'). Use one of ...
    """
    observer = observer or Observer()
    job = load_job(job, overrides)
    paths = RunPaths(open_storage(job.storage_path), job.name)
    problems = check_storage(job)
    if problems and not paths.store.shared:
        raise InputError(problems)
    with fetched(paths):
        found = settled(job, read_json(paths.record) if resume else None)
        if problems := problems + check_workers(found.job) + check_name(found.job, paths, resume, overwrite):
            raise InputError(problems)
        observer.tell(found.line)
        try:
            return _train(found.job, found.chosen, paths, resume, overwrite, verbose, observer)
        except RunError as error:
            if not (read_json(paths.failure) or {}).get("tokens"):
                raise
            observer.warn(f"{error} The tokens are made again, and the run goes on from its newest checkpoint.")
            return _train(found.job, found.chosen, paths, True, False, verbose, observer)


def _train(
    job: TrainJob,
    chosen: dict[str, Any],
    paths: RunPaths,
    resume: bool,
    overwrite: bool,
    verbose: bool,
    observer: Observer,
) -> TrainResult:
    if resume and (done := _finished(paths, job, observer)):
        return done
    from raytrain_nlp.planning.inputs import find_job_files

    observer.stage("looking at the data")
    files = find_job_files(job, paths.storage)
    kept = read_json(paths.record) if resume else None
    with connect_ahead(job, verbose, say=observer.stage) as connection, measured(job, paths.storage) as base:
        resolved = prepare(job, files, paths.storage, connection, observer, verbose)
        if not is_local():
            connection()  # the cluster knows how much memory its GPUs have
        fitted = fit(job, resolved, observer, functools.partial(find_available, job), base, kept, files.train)
        connection()
        return run_resolved(
            fitted.job,
            fitted.resolved,
            paths,
            observer,
            resume=resume,
            overwrite=overwrite,
            chosen={**chosen, **fitted.values},
            setting=fitted.choice.to_dict() if fitted.choice else None,
        )


def measured(job: TrainJob, storage: Path) -> contextlib.AbstractContextManager[Callable[[], int]]:
    """Yields a function that returns the memory of a worker's process without a model, in bytes. It is measured
    in a subprocess if the job leaves keys to the memory planner; else it is a constant estimate.
    """
    return process_measured(job, storage) if job.auto else contextlib.nullcontext(lambda: devices.CONTEXT_BYTES)


def fit(
    job: TrainJob,
    resolved: Resolved,
    observer: Observer,
    available: Callable[[], int | None],
    base: Callable[[], int],
    kept: dict[str, Any] | None = None,
    train_files: Iterable[SourceFile] = (),
) -> Fitted:
    """Let the memory planner choose the keys that the job leaves to `auto`, and tell the observer what it chose. The
    arguments are those of `verbs.fitting.fit_job`.
    """
    from raytrain_nlp.verbs.fitting import fit_job

    if job.auto:
        observer.stage("planning memory")
    fitted = fit_job(job, resolved, available, base, kept, sum(file.size for file in train_files))
    for line in fitted.choice.lines() if fitted.choice else ():
        (observer.tell if fitted.choice and fitted.choice.fits else observer.warn)(line)
    return fitted


def prepare(
    job: TrainJob, files: Files, storage: Path, connection: Connection | None, observer: Observer, verbose: bool = False
) -> Resolved:
    """Check the job's values, prepare its tokens (or find them in the cache), and plan the run.

    Args:
        files: the files of the job, found.
        storage: local root of the job's storage path.
        connection: connects to the cluster, which tokenizes large files; None: already connected.
        verbose: show what Ray prints.

    Raises:
        InputError: the job, its data and its model do not fit each other.
    """
    from raytrain_nlp.planning.library_checks import check_values, notes_of
    from raytrain_nlp.planning.resolve import SMALL_BYTES, resolve

    if problems := check_values(job):
        raise InputError(problems)
    for note in notes_of(job):
        observer.warn(note)
    small = files.bytes_before(job.data.streaming) <= SMALL_BYTES
    observer.stage("preparing tokens")

    def map_pieces(function: Any, items: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        if small:
            if connection:
                connection.connect_if_up()
            return map(function, items)
        if connection:
            connection()
        return _with_progress(map_on_cluster(function, items, verbose), len(items), observer)

    resolved = resolve(job, files, storage, map_pieces, verbose)
    for note in resolved.notes:
        observer.warn(note)
    for line in resolved.shares:
        observer.tell(line)
    return resolved


def run_resolved(
    job: TrainJob,
    resolved: Resolved,
    paths: RunPaths,
    observer: Observer,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tracked: bool = True,
    fit: Launch | None = None,
    chosen: dict[str, Any] | None = None,
    setting: dict[str, Any] | None = None,
) -> TrainResult:
    """Run a resolved job on workers, while holding the lock of the run's folder.

    Args:
        tracked: whether this driver sends the run's events to MLflow; for a trial the sweep's driver does.
        fit: starts the workers; default: `Fit`, or `ElasticFit` for an elastic job.
        chosen: values of keys that the job file left to `auto`, for the record; a resumed run keeps them.
        setting: what the memory planner has said about its choice, for the record; None: the record's stays.

    Raises:
        InputError: another driver has the run, or its data have changed since it began.
        RunError: the run failed.
        Stopped: the user stopped it.
    """
    from raytrain_nlp.planning.resolved import write_quarantine

    with open_run(paths, overwrite) as record, synchronized(paths, observer.warn, tracked) as flush:
        if resume:
            check_data(record, resolved.spec.data_fingerprint)
        job_text = dump_job(job)
        with replacing(paths.job) as file:
            file.write(job_text)
        write_quarantine(resolved, paths.quarantine)
        spec = resolved.spec
        record.update(
            status="running",
            job=public_values(job),
            task=public_values(spec.job)["task"],
            drivers=record.values["drivers"] + 1,
            data_fingerprint=spec.data_fingerprint,
            labels=spec.labels,
            tokenizer=spec.tokenizer_dir,
            versions=spec.versions,
            lengths=resolved.lengths(),
            chosen=chosen or {},
            folder=spec.code_folder,
            host=socket.gethostname(),
            plan={
                "steps": spec.total_steps,
                "steps_per_epoch": spec.steps_per_epoch,
                **find_estimate(job, spec.storage_path),
            },
            ended=None,
            **({"setting": setting} if setting else {}),
        )
        try:
            flush()
            spec = replace(spec, driver=record.values["drivers"], notes_rows=rows_are_noted())
            resolved = replace(resolved, spec=spec)
            observer.stage("starting the workers")
            fit = fit or (ElasticFit if job.workers.elastic else Fit)(say=observer.stage)
            return _run(job, resolved, paths, record, observer, job_text, tracked, fit, flush)
        except KeyboardInterrupt:
            record.update(status=STATUS["KILLED"])
            raise stopped(paths) from None


def run_params(job: TrainJob) -> dict[str, Any]:
    """The parameters of a run for the tracker: the values of the job, and all its training arguments."""
    return {**flatten(public_values(job)), **flatten(job.arguments(), "training.")}


def _run(
    job: TrainJob,
    resolved: Resolved,
    paths: RunPaths,
    record: RunRecord,
    observer: Observer,
    job_text: str,
    tracked: bool,
    fit: Launch,
    flush: Callable[[], None],
) -> TrainResult:
    """Run the workers while the tracker and the observer follow their events. However it ends, the status is written to
    the record and the tracker.
    """
    spec = resolved.spec
    if resolved.windows:
        spec = replace(spec, train=resolved.windows.attach(paths))
    events = EventLog(paths.events)
    events.write("datasets", datasets=resolved.datasets)
    events.write("log", step=0, metrics=flatten({f"data/{key}": value for key, value in resolved.counts().items()}))
    paths.store.delete([paths.failure])
    forget(paths)
    load_libraries()  # before threads are started that could import the same modules at the same time
    with _Tracking(job, paths, record, job_text, tracked, observer) as tracking:
        with (
            followed(paths, exported(observer, job.name) if tracked else observer),
            _windows_beside(job, resolved, paths),
            stops_at_checkpoint(paths, tracking.note_stop, tracking.end_at_once),
        ):
            try:
                outcome = fit(job, spec, paths)
            finally:
                flush()  # fetches the workers' last events, before the tracker is closed
                if faults := faults_of(paths):
                    record.update(faults=faults)
        if "error" in outcome:
            raise outcome["error"]
        if has_moved(outcome):
            raise KeyboardInterrupt
        best = outcome["result"]["best_step"] if job.arguments().get("load_best_model_at_end") else None
        events.write("model", step=best or outcome["result"]["global_step"], task=job.task.type)
    restarts = sum(event["kind"] in ("start", "resume") for event, _ in read_events(paths.events)) - 1
    result = TrainResult(
        run_dir=paths.address,
        mlflow_run_id=tracking.run_id,
        tracking_uri=tracking.uri,
        model_dir=shown(paths.model),
        labels=spec.labels,
        restarts=restarts,
        **outcome["result"],
        **resolved.counts(),
    )
    record.update(result=result.to_dict())
    return result


class _Tracking:
    """The tracker of a run and its mirrors (TensorBoard, W&B), running while inside. On leaving, they and the run's
    record get the status of the run; `end_at_once` does it for a process that ends without leaving.
    """

    def __init__(
        self, job: TrainJob, paths: RunPaths, record: RunRecord, job_text: str, tracked: bool, observer: Observer
    ) -> None:
        params, experiment = run_params(job), job.tracking.experiment_name or "raytrain_nlp"
        self._paths, self._record = paths, record
        self._tracker = Tracker(paths, job.tracking, params, job_text, observer.warn) if tracked else None
        mirrors = [Mirror(name, paths, params, experiment, observer.warn) for name in job.tracking.report_to]
        self._all: list[Tracker | Mirror] = [*([self._tracker] if self._tracker else []), *mirrors]

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None until it exists, or if the run is not tracked."""
        return self._tracker.run_id if self._tracker else None

    @property
    def uri(self) -> str | None:
        """MLflow's tracking URI without passwords; None if the run is not tracked."""
        return masked_address(self._tracker.uri) if self._tracker else None

    def __enter__(self) -> _Tracking:
        for one in self._all:
            one.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        # on a disk that refuses this, too, what has ended the run is the error to be told
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self._record.update(status=STATUS[status], ended=now())
        for one in self._all:
            one.close(status)
        if self._tracker:
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self._record.update(mlflow_run_id=self.run_id)

    def note_stop(self) -> None:
        """Write to the record that the user has stopped the run."""
        self._record.update(status=STATUS["KILLED"])

    def end_at_once(self) -> None:
        """Record the stop and end the tracker quickly. It is called in another thread, just before the process ends."""
        self.note_stop()
        if self._tracker:
            self._tracker.end_at_once("KILLED")


def _windows_beside(job: TrainJob, resolved: Resolved, paths: RunPaths) -> contextlib.AbstractContextManager[None]:
    """While inside, prepare further windows of streamed rows; nothing to do if rows are not streamed."""
    if resolved.windows is None:
        return contextlib.nullcontext()
    return resolved.windows.running(
        lambda: (read_json(paths.progress) or {}).get("step", 0),
        paths.quarantine,
        functools.partial(map_beside_training, job),
    )


def _finished(paths: RunPaths, job: TrainJob, observer: Observer) -> TrainResult | None:
    """The result of a run that has already ended well, else None. Events that MLflow did not receive then are sent
    now.
    """
    record = read_json(paths.record) or {}
    if record.get("status") != "finished" or "result" not in record:
        return None
    tracker = Tracker(paths, job.tracking, {}, dump_job(job), observer.warn).start()
    tracker.close("FINISHED")
    with open_run(paths, overwrite=False) as run, synchronized(paths, observer.warn):
        run.update(mlflow_run_id=tracker.run_id, result={**record["result"], "mlflow_run_id": tracker.run_id})
    return TrainResult(**{**record["result"], "mlflow_run_id": tracker.run_id})


def _with_progress(results: Iterable[dict[str, Any]], total: int, observer: Observer) -> Iterator[dict[str, Any]]:
    """Yield the results, and tell the observer how many of `total` there are."""
    for number, result in enumerate(results, 1):
        observer.stage(f"preparing tokens: {number} of {total} parts")
        yield result
