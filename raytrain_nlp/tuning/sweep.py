"""`sweep`: from a space to the best model. Ray Tune runs the trials, Optuna chooses them, each trial is a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.cluster.connection import connect_ahead
from raytrain_nlp.cluster.resources import need_of, nodes_of_cluster
from raytrain_nlp.cluster.session import check_workers, environment, is_local
from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.sweep import Sweep, SweepSource, load_sweep
from raytrain_nlp.errors import InputError, Problem, RunError, Stopped
from raytrain_nlp.host.signals import at_once, stoppable
from raytrain_nlp.paths import SweepPaths, read_json
from raytrain_nlp.run.record import RunRecord, check_storage, open_run
from raytrain_nlp.run.sync import fetched, synchronized
from raytrain_nlp.run.trial_records import FAILED, Book, TrialRecord
from raytrain_nlp.storage import open_storage, shown
from raytrain_nlp.tuning.concurrency import plan_concurrency, plan_local
from raytrain_nlp.tuning.observer import SweepObserver
from raytrain_nlp.tuning.registration import check_registration, register_best
from raytrain_nlp.tuning.results import SweepResult, counts_of, table_of, write_best, write_table
from raytrain_nlp.tuning.sweep_record import check_name, check_scheduler, check_trials, open_sweep, settle_sweep
from raytrain_nlp.tuning.tune_run import run_trials
from raytrain_nlp.verbs.train import STATUS, prepare

if TYPE_CHECKING:
    from raytrain_nlp.planning.resolved import Resolved
    from raytrain_nlp.tuning.study import Study

_LOCAL_RAY = {"RAY_worker_maximum_startup_concurrency": "16"}
"""Processes are forked, not booted: many at once cost little. Ray would also warn of more than four times its
default.
"""


@stoppable("stopped before the trials started. Run the same command again.")
def sweep(
    job: SweepSource,
    *,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    observer: SweepObserver | None = None,
) -> SweepResult:
    """Run a sweep and return its result.

    Args:
        job: path of a sweep's job file, a dict of its sections, or a `SweepJob`.
        overrides: `dotted.key=value`, as `--set`; `job.` reaches into the job.
        resume: continue the sweep of this name; finished trials stay, interrupted ones go on from their newest good
            checkpoint.
        overwrite: delete the sweep of this name first.

    Raises:
        InputError: the sweep, its job, data or model are wrong, or no trial could ever be placed; nothing has been
            started.
        RunError: all trials failed, or more than `max_trial_failures`.

    Example:
        >>> import raytrain_nlp
        >>> quick = ["num_samples=2", "job.training.max_steps=10"]
    >>> result = raytrain_nlp.sweep("jobs/sweep.yaml", overrides=quick)  # doctest: +SKIP
        >>> result.dataframe()[["status", "eval_accuracy"]].shape  # doctest: +SKIP
        (2, 2)
    """
    observer = observer or SweepObserver()
    plan = load_sweep(job, overrides)
    paths = SweepPaths(open_storage(plan.job.storage_path), plan.config.name)
    problems = check_storage(plan.job) + check_registration(plan) + check_scheduler(plan)
    if problems and not paths.store.shared:
        raise InputError(problems)
    with fetched(paths):
        plan, found = settle_sweep(plan, read_json(paths.record) if resume else None)
        largest = max(plan.jobs, key=lambda one: sorted(need_of(one).items()))
        if problems := problems + check_workers(largest) + check_name(plan, paths, resume, overwrite):
            raise InputError(problems)
        observer.tell(f"{found.line} a trial")
        return _sweep(plan, found.chosen, paths, largest, overwrite, verbose, observer)


def _sweep(
    plan: Sweep,
    chosen: dict[str, Any],
    paths: SweepPaths,
    largest: TrainJob,
    overwrite: bool,
    verbose: bool,
    observer: SweepObserver,
) -> SweepResult:
    from raytrain_nlp.planning.inputs import find_job_files

    local = is_local()
    observer.stage("looking at the data")
    files = find_job_files(plan.job, paths.storage)
    if problems := check_trials(plan):
        raise InputError(problems)
    slots = plan_local(largest, plan.config.max_concurrent_trials) if local else 1
    with environment(_LOCAL_RAY if local else {}), connect_ahead(largest, verbose, slots, observer.stage) as connection:
        resolved = prepare(plan.job, files, paths.storage, connection, observer, verbose)
        connection()
        concurrent = min(
            slots if local else plan_concurrency(plan.jobs, nodes_of_cluster(), plan.config.max_concurrent_trials),
            plan.num_trials,
        )
        from raytrain_nlp.tuning.schedulers import build_scheduler, length_of

        scheduler = build_scheduler(plan.config, length_of(plan.job, resolved.spec), concurrent)
        with open_run(paths, overwrite) as record, synchronized(paths, observer.warn):
            text = open_sweep(plan, paths, record, chosen)
            return _run(plan, paths, record, resolved, concurrent, scheduler, observer, text, verbose)


def _run(
    plan: Sweep,
    paths: SweepPaths,
    record: RunRecord,
    resolved: Resolved,
    concurrent: int,
    scheduler: Any,
    observer: SweepObserver,
    text: str,
    verbose: bool,
) -> SweepResult:
    """Trials, then what they leave; the record and the tracker learn how it ended, whatever happens."""
    from raytrain_nlp.tuning.mlflow_runs import Tree
    from raytrain_nlp.tuning.study import Study

    config = plan.config
    book = Book(paths)
    study = Study(config, paths.study)
    tree = Tree(plan, paths, book, text, observer.warn).start()
    record.update(tokenized_rows=record.values.get("tokenized_rows", 0) + resolved.tokenized_rows)
    observer.begin(plan, concurrent)
    status, best, artifacts = "FAILED", None, []

    def end_at_once() -> None:
        record.update(status=STATUS["KILLED"])
        tree.end_at_once("KILLED")

    try:
        try:
            with at_once(end_at_once):
                run_trials(plan, paths, book, study, tree, concurrent, scheduler, observer, verbose)
        except KeyboardInterrupt:
            status = "KILLED"
            raise Stopped(f"stopped. Continue with --resume; the trials are in {shown(paths.trials)}.") from None
        best = book.best(config.metric, config.mode)
        artifacts = _leave(plan, paths, book, study, best, observer)
        status = _judge(plan, book, best)
        assert best is not None, "a sweep without one has just failed"
    finally:
        record.update(status=STATUS[status])
        run_id = tree.close(status, best, [path for path in artifacts if path.exists()])
    version = register_best(plan, paths, best, observer.warn) if config.register_model else None
    rows = table_of(plan, book)
    write_table(rows, paths)  # now with the ids of the MLflow runs
    result = SweepResult(
        sweep_dir=paths.address,
        best_trial=best.number,
        best_params=best.params,
        best_metrics=best.metrics,
        best_job=shown(paths.best),
        model_dir=shown(paths.model),
        trials=counts_of(book),
        mlflow_run_id=run_id,
        tokenized_rows=record.values["tokenized_rows"],
        model_version=version,
        tracking_uri=tree.uri,
        table=rows,
    )
    record.update(result=result.to_dict(), mlflow_run_id=run_id)
    return result


def _leave(
    plan: Sweep, paths: SweepPaths, book: Book, study: Study, best: TrialRecord | None, observer: SweepObserver
) -> list[Path]:
    """Table, best job, model and pictures."""
    from raytrain_nlp.tuning.plots import write_plots

    write_table(table_of(plan, book), paths)
    artifacts = [paths.table]
    if best:
        write_best(plan, paths, best)
        paths.store.push_tree(paths.model, again=True)
        artifacts.append(paths.best)
    try:
        artifacts += write_plots(plan.config, book, study.study, paths.plots)
    except Exception as error:  # noqa: BLE001 - a picture is not worth a sweep
        observer.warn(f"a plot cannot be drawn ({type(error).__name__}: {error}).")
    return artifacts


def _judge(plan: Sweep, book: Book, best: TrialRecord | None) -> str:
    if book.wrong_metric:
        raise InputError(
            Problem(
                "metric",
                f"{book.wrong_metric} ({plan.config.metric})",
                "Name one of them, and start the sweep again with --overwrite.",
            )
        )
    failed, most = book.with_status(FAILED), plan.config.max_trial_failures
    reasons = "; ".join(f"{trial.name}: {trial.reason}" for trial in failed[:3])
    if most is not None and len(failed) > most:
        raise RunError(f"{len(failed)} trials failed, more than max_trial_failures ({most}). {reasons}")
    if best is None:
        raise RunError(f"no trial finished ({len(failed)} of {len(book.trials)} failed). {reasons}")
    return "FINISHED"
