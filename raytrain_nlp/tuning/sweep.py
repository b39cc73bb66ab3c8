"""`sweep`: from a space to the best model. Ray Tune runs the trials, Optuna chooses them, each trial is a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from raytrain_nlp.config import TrainJob, public_values
from raytrain_nlp.config.sweep import Sweep, SweepSource, load_sweep
from raytrain_nlp.driver.cluster import check_workers, connect_ahead, environment, is_local
from raytrain_nlp.driver.nodes import need_of, nodes_of_cluster
from raytrain_nlp.driver.observer import Observer
from raytrain_nlp.driver.record import RunRecord, check_storage, open_run
from raytrain_nlp.driver.shared import arrived, carried
from raytrain_nlp.driver.train import prepare
from raytrain_nlp.errors import InputError, Problem, RunError
from raytrain_nlp.paths import SweepPaths, read_json, redact
from raytrain_nlp.remote.mirror import push_tree
from raytrain_nlp.remote.places import is_remote, local_folder, remote_of, shown
from raytrain_nlp.tuning.around import quiet_tune, tune_environment
from raytrain_nlp.tuning.book import FAILED, RUNNING, Book, TrialRecord
from raytrain_nlp.tuning.planner import plan_concurrency, plan_local
from raytrain_nlp.tuning.registration import check_registration, register_best
from raytrain_nlp.tuning.results import SweepResult, counts_of, table_of, write_best, write_table

# What a resumed sweep may not change: its trials would no longer be of one kind.
_FIXED = ("search_space", "metric", "mode", "scheduler", "searcher", "seed", "job")
_LOCAL_RAY = {"RAY_worker_maximum_startup_concurrency": "16"}
"""Processes are forked, not booted: many at once cost little. Ray would also warn of more than four times its default."""
_SLOT = "node:__internal_head__"
"""A resource of which every cluster has one, and nothing else takes a share that counts: what limits trials at a time."""


class SweepObserver(Observer):
    """Hears of trials besides; shows nothing."""

    def trial(self, record: TrialRecord, records: list[TrialRecord]) -> None:
        """A trial began, was evaluated or ended; and all so far."""

    def begin(self, sweep: Sweep, concurrent: int) -> None:
        """The sweep starts with so many trials at a time."""


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
        resume: continue the sweep of this name; finished trials stay, interrupted ones go on from their newest good checkpoint.
        overwrite: delete the sweep of this name first.

    Raises:
        InputError: the sweep, its job, data or model are wrong, or no trial could ever be placed; nothing has been started.
        RunError: all trials failed, or more than `max_trial_failures`.
    """
    observer = observer or SweepObserver()
    plan = load_sweep(job, overrides)
    paths = SweepPaths(local_folder(plan.job.storage_path), plan.config.name)
    largest = max(plan.jobs, key=lambda one: sorted(need_of(one).items()))
    problems = check_storage(plan.job) + check_workers(largest) + check_registration(plan) + _check_scheduler(plan)
    if problems and is_remote(plan.job.storage_path):
        raise InputError(problems)
    with arrived(paths):
        if problems := problems + _check_name(plan, paths, resume, overwrite):
            raise InputError(problems)
        return _sweep(plan, paths, largest, overwrite, verbose, observer)


def _sweep(plan: Sweep, paths: SweepPaths, largest: TrainJob, overwrite: bool, verbose: bool, observer: SweepObserver) -> SweepResult:
    from raytrain_nlp.driver.inputs import find_job_files

    local = is_local()
    observer.stage("looking at the data")
    files = find_job_files(plan.job, paths.storage)
    slots = plan_local(largest, plan.config.max_concurrent_trials) if local else 1
    with environment(_LOCAL_RAY if local else {}), connect_ahead(largest, verbose, slots, observer.stage) as wait_connected:
        resolved = prepare(plan.job, files, paths.storage, wait_connected, observer, verbose)
        wait_connected()
        concurrent = min(slots if local else plan_concurrency(plan.jobs, nodes_of_cluster(), plan.config.max_concurrent_trials), plan.num_trials)
        from raytrain_nlp.tuning.schedulers import build_scheduler

        scheduler = build_scheduler(plan.config, _length(plan.job, resolved), concurrent)
        with open_run(paths, overwrite) as record, carried(paths, observer.warn):
            text = _open(plan, paths, record)
            return _run(plan, paths, record, resolved, concurrent, scheduler, observer, text, verbose)


def _open(plan: Sweep, paths: SweepPaths, record: RunRecord) -> str:
    values = _settings(plan)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    paths.job.write_text(text, encoding="utf-8")
    paths.trials.mkdir(exist_ok=True)
    record.update(kind="sweep", status="running", sweep=values, drivers=record.values["drivers"] + 1)
    return text


def _run(
    plan: Sweep, paths: SweepPaths, record: RunRecord, resolved: Any, concurrent: int, scheduler: Any, observer: SweepObserver, text: str, verbose: bool
) -> SweepResult:
    """Trials, then what they leave; the record and the tracker learn how it ended, whatever happens."""
    from raytrain_nlp.tuning.study import Study
    from raytrain_nlp.tuning.tree import Tree

    config = plan.config
    book = Book(paths)
    study = Study(config, paths.study)
    tree = Tree(plan, paths, book, text, observer.warn).start()
    record.update(tokenized_rows=record.values.get("tokenized_rows", 0) + resolved.tokenized_rows)
    observer.begin(plan, concurrent)
    status, best, artifacts = "FAILED", None, []
    try:
        try:
            _tune(plan, paths, book, study, tree, concurrent, scheduler, observer, verbose)
        except KeyboardInterrupt:
            status = "KILLED"
            raise RunError(f"stopped. Continue with --resume; the trials are in {shown(paths.trials)}.") from None
        best = book.best(config.metric, config.mode)
        artifacts = _leave(plan, paths, book, study, best, observer)
        status = _judge(plan, book, best)
    finally:
        record.update(status=status.lower())
        run_id = tree.close(status, best, [path for path in artifacts if path.exists()])
    version = register_best(plan, paths, best, observer.warn) if config.register_model else None
    rows = table_of(plan, book)
    write_table(rows, paths)  # now with the ids of the MLflow runs
    result = SweepResult(
        sweep_dir=shown(paths.run), best_trial=best.number, best_params=best.params, best_metrics=best.metrics, best_job=shown(paths.best),
        model_dir=shown(paths.model), trials=counts_of(book), mlflow_run_id=run_id, tokenized_rows=record.values["tokenized_rows"], model_version=version, table=rows,
    )  # fmt: skip
    record.update(result=result.to_dict(), mlflow_run_id=run_id)
    return result


def _tune(
    plan: Sweep, paths: SweepPaths, book: Book, study: Any, tree: Any, concurrent: int, scheduler: Any, observer: SweepObserver, verbose: bool
) -> None:
    """Ray Tune's part. Its own files go to a folder that is deleted: nothing is ever resumed from them."""
    import ray
    from ray import tune

    from raytrain_nlp.tuning.desk import open_desk
    from raytrain_nlp.tuning.schedulers import replay
    from raytrain_nlp.tuning.searcher import Bookkeeper, NoUseToGoOn, PointSource, StudySearcher, name_trial
    from raytrain_nlp.tuning.trial import TrialActor, TrialSettings

    config = plan.config
    interrupted = book.with_status(RUNNING)
    for trial in interrupted:
        study.reopen(trial.number)
    points = PointSource(study, interrupted, len(book.trials), plan.num_trials)
    replay(scheduler, book, config)
    desk = open_desk() if config.reuse_workers else None
    settings = TrialSettings(
        _without_tracker(plan), config.search_space, str(paths.storage), str(paths.trials), config.metric, plan.pauses, config.scheduler.type == "pbt", desk
    )

    def changed(trial: TrialRecord) -> None:
        if trial.status != RUNNING:
            found = book.best(config.metric, config.mode)
            tree.end(trial, found.value(config.metric) if found else None)
        observer.trial(trial, list(book.trials.values()))

    population: dict[str, Any] = {}
    if config.scheduler.type == "pbt":  # it takes no searcher: the first values are drawn for all at once
        first = points.all()
        if not first:
            return
        population = {"search_alg": _population(first), "config": {key: tune.choice([None]) for key in first[0]}, "num_samples": len(first)}
    elif not interrupted and len(book.trials) >= plan.num_trials:
        return
    else:
        limit = {} if plan.pauses else {"max_concurrent_trials": concurrent}  # a paused trial would count, and the others wait for ever
        population = {"search_alg": StudySearcher(points), "num_samples": -1, **limit}
    # a bracket of hyperband is filled by trials that wait, while Tune would ask for one at a time
    waiting = {"TUNE_MAX_PENDING_TRIALS_PG": str(plan.num_trials)} if config.scheduler.type == "hyperband" else {}
    with tune_environment(waiting), quiet_tune(verbose):
        tune.run(
            tune.with_parameters(TrialActor, settings=settings),
            name="tune",
            storage_path=str(paths.ray),
            scheduler=scheduler,
            resources_per_trial=tune.PlacementGroupFactory([{_slot(paths): int(0.99 / concurrent * 10_000) / 10_000}]),
            stop=NoUseToGoOn(book, config.max_trial_failures),
            trial_name_creator=name_trial,
            callbacks=[Bookkeeper(book, study, config.metric, changed, tree.follow)],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
            **population,
        )
    if desk is not None:
        ray.kill(desk)
    shutil.rmtree(paths.ray, ignore_errors=True)


def _slot(paths: SweepPaths) -> str:
    """The resource of the node on which trials are driven: the head; in object storage this one, for a trial's files are then here."""
    import ray

    return f"node:{ray.util.get_node_ip_address()}" if remote_of(paths.run) else _SLOT


def _population(points: list[dict[str, Any]]) -> Any:
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(points_to_evaluate=points)


def _leave(plan: Sweep, paths: SweepPaths, book: Book, study: Any, best: TrialRecord | None, observer: SweepObserver) -> list[Path]:
    """Table, best job, model and pictures."""
    from raytrain_nlp.tuning.plots import write_plots

    write_table(table_of(plan, book), paths)
    artifacts = [paths.table]
    if best:
        write_best(plan, paths, best)
        push_tree(paths.model, again=True)
        artifacts.append(paths.best)
    try:
        artifacts += write_plots(plan.config, book, study.study, paths.plots)
    except Exception as error:  # noqa: BLE001 - a picture is not worth a sweep
        observer.warn(f"a plot cannot be drawn ({type(error).__name__}: {error}).")
    return artifacts


def _judge(plan: Sweep, book: Book, best: TrialRecord | None) -> str:
    if book.wrong_metric:
        raise InputError(Problem("metric", f"{book.wrong_metric} ({plan.config.metric})", "Name one of them, and start the sweep again with --overwrite."))
    failed, most = book.with_status(FAILED), plan.config.max_trial_failures
    reasons = "; ".join(f"{trial.name}: {trial.reason}" for trial in failed[:3])
    if most is not None and len(failed) > most:
        raise RunError(f"{len(failed)} trials failed, more than max_trial_failures ({most}). {reasons}")
    if best is None:
        raise RunError(f"no trial finished ({len(failed)} of {len(book.trials)} failed). {reasons}")
    return "FINISHED"


def _length(job: TrainJob, resolved: Any) -> dict[str, float]:
    """How long a whole trial of the base job is: evaluations, steps, epochs."""
    arguments, spec = job.arguments(), resolved.spec
    epochs = spec.total_steps / spec.steps_per_epoch
    if arguments["eval_strategy"] == "epoch":
        evaluations = math.ceil(epochs)
    else:
        every = arguments["eval_steps"]
        evaluations = int(spec.total_steps // max(every if every >= 1 else every * spec.total_steps, 1))
    return {"training_iteration": evaluations, "step": spec.total_steps, "epoch": epochs}


def _without_tracker(plan: Sweep) -> dict[str, Any]:
    """The base job for trials, which track nothing themselves: an address may hold a password."""
    values = {**plan.values, "storage_path": str(plan.job.storage_path)}
    return {**values, "tracking": {"report_to": list(plan.job.tracking.report_to)}}


def _settings(plan: Sweep) -> dict[str, Any]:
    """The sweep as it may be kept and logged."""
    values = plan.config.model_dump(mode="json", exclude_unset=True, by_alias=True)
    values["job"] = public_values(plan.job)
    if values.get("tracking", {}).get("tracking_uri"):
        values["tracking"]["tracking_uri"] = redact(values["tracking"]["tracking_uri"])
    return values


def _check_scheduler(plan: Sweep) -> list[Problem]:
    if not plan.pauses or not is_remote(plan.job.storage_path):
        return []
    what = f"{plan.config.scheduler.type} passes checkpoints from trial to trial, which needs a storage_path that is a folder"
    return [Problem("scheduler.type", what, "Use asha, median_stopping or fifo, or name a folder that all nodes share.")]


def _check_name(plan: Sweep, paths: SweepPaths, resume: bool, overwrite: bool) -> list[Problem]:
    """May the sweep start under this name? Also whether a resumed one is still the same."""
    name = plan.config.name
    if resume and overwrite:
        return [Problem("--overwrite", "excludes --resume", "Give one of them.")]
    if overwrite and paths.record.exists():
        return []
    record = read_json(paths.record)
    if record is None:
        if resume:
            return [Problem("--resume", f"there is no sweep '{name}' in {plan.job.storage_path}", "Start it without --resume.")]
        if paths.run.exists() and any(path != paths.lock for path in paths.run.iterdir()):
            return [Problem("name", f"the folder exists and is no sweep of ours ({shown(paths.run)})", "Choose another name.")]
        return []
    if not resume:
        what = f"the sweep '{name}' exists already ({record.get('status')})"
        return [Problem("name", what, "Add --resume to continue it, --overwrite to replace it, or choose another name.")]
    before, after = record.get("sweep", {}), _settings(plan)
    return [
        Problem(key, "differs from the sweep's own", "Resume with what it began with, or start a new sweep.")
        for key in _FIXED
        if _compared(before.get(key)) != _compared(after.get(key))
    ]


def _compared(value: Any) -> Any:
    return {key: part for key, part in value.items() if key not in ("tracking", "storage_path", "name")} if isinstance(value, dict) else value
