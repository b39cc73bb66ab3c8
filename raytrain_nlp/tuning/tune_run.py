"""Ray Tune's part of a sweep: it takes points from the study, places trials, and calls back with their results."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.sweep import Sweep
from raytrain_nlp.paths import SweepPaths, read_json
from raytrain_nlp.run.trial_records import RUNNING, Book, TrialRecord
from raytrain_nlp.tuning.observer import SweepObserver
from raytrain_nlp.tuning.tune_environment import quiet_tune, tune_environment

if TYPE_CHECKING:
    from raytrain_nlp.tuning.mlflow_runs import Tree
    from raytrain_nlp.tuning.searcher import PointSource
    from raytrain_nlp.tuning.study import Study
    from raytrain_nlp.tuning.trial import TrialSettings

_HEAD = "node:__internal_head__"
"""A resource of which each Ray cluster has exactly 1, on its head node. Each trial takes a fraction of it, which limits
the number of trials at a time.
"""


def run_trials(
    plan: Sweep,
    paths: SweepPaths,
    book: Book,
    study: Study,
    tree: Tree,
    concurrent: int,
    scheduler: Any,
    observer: SweepObserver,
    verbose: bool,
) -> None:
    """Run the trials of a sweep with Ray Tune. Tune's own files are deleted afterwards, because a sweep is resumed from
    the book and the study.
    """
    import ray
    from ray import tune

    from raytrain_nlp.tuning.mailbox import open_mailbox
    from raytrain_nlp.tuning.schedulers import replay
    from raytrain_nlp.tuning.searcher import Bookkeeper, NoUseToGoOn, PointSource, name_trial
    from raytrain_nlp.tuning.trial import TrialActor

    config = plan.config
    interrupted = book.with_status(RUNNING)
    for trial in interrupted:
        study.reopen(trial.number)
    points = PointSource(study, interrupted, len(book.trials), plan.num_trials)
    replay(scheduler, book, config)
    drawn = _search(plan, points, concurrent, finished=not interrupted and len(book.trials) >= plan.num_trials)
    if drawn is None:
        return
    mailbox = open_mailbox() if config.reuse_workers else None

    def changed(trial: TrialRecord) -> None:
        if trial.status != RUNNING:
            found = book.best(config.metric, config.mode)
            tree.end(trial, found.value(config.metric) if found else None)
        observer.trial(trial, list(book.trials.values()))

    # a bracket of hyperband is filled by trials that wait, while Tune would ask for one at a time
    waiting = {"TUNE_MAX_PENDING_TRIALS_PG": str(plan.num_trials)} if config.scheduler.type == "hyperband" else {}
    with tune_environment(waiting), quiet_tune(verbose):
        tune.run(
            tune.with_parameters(TrialActor, settings=_settings(plan, paths, mailbox, concurrent)),
            name="tune",
            storage_path=str(paths.ray),
            scheduler=scheduler,
            resources_per_trial=tune.PlacementGroupFactory(
                [{_trial_resource(paths): int(0.99 / concurrent * 10_000) / 10_000}]
            ),
            stop=NoUseToGoOn(book, config.max_trial_failures),
            trial_name_creator=name_trial,
            callbacks=[Bookkeeper(book, study, config.metric, changed, tree.follow)],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
            **drawn,
        )
    if mailbox is not None:
        ray.kill(mailbox)
    shutil.rmtree(paths.ray, ignore_errors=True)


def _search(plan: Sweep, points: PointSource, concurrent: int, finished: bool) -> dict[str, Any] | None:
    """How `tune.run` gets its points, as its arguments; None where no trial is left to run."""
    from ray import tune

    from raytrain_nlp.tuning.searcher import StudySearcher

    if plan.config.scheduler.type == "pbt":  # it takes no searcher: the first values are drawn for all at once
        first = points.all()
        if not first:
            return None
        config = {key: tune.choice([None]) for key in first[0]}
        return {"search_alg": _population(first), "config": config, "num_samples": len(first)}
    if finished:
        return None
    # a paused trial would count, and the others wait for ever
    limit = {} if plan.pauses else {"max_concurrent_trials": concurrent}
    return {"search_alg": StudySearcher(points), "num_samples": -1, **limit}


def _settings(plan: Sweep, paths: SweepPaths, mailbox: Any, concurrent: int) -> TrialSettings:
    from raytrain_nlp.memory.available import find_available
    from raytrain_nlp.tuning.trial import TrialSettings

    config, job = plan.config, plan.job
    memory = find_available(job)
    if memory is not None and not job.workers.use_gpu:  # trials share the machine
        memory //= concurrent
    return TrialSettings(
        _without_tracker(plan),
        config.search_space,
        str(paths.storage),
        str(paths.trials),
        config.metric,
        plan.pauses,
        config.scheduler.type == "pbt",
        mailbox,
        (read_json(paths.record) or {}).get("chosen") or {},
        memory,
    )


def _trial_resource(paths: SweepPaths) -> str:
    """The resource of the node on which trial actors run: the head node, or with object storage this node, where the
    trials' files are.
    """
    import ray

    return _HEAD if paths.store.shared else f"node:{ray.util.get_node_ip_address()}"


def _population(points: list[dict[str, Any]]) -> Any:
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(points_to_evaluate=points)


def _without_tracker(plan: Sweep) -> dict[str, Any]:
    """The base job for trials, which track nothing themselves: an address may hold a password."""
    values = {**plan.values, "storage_path": str(plan.job.storage_path)}
    return {**values, "tracking": {"report_to": list(plan.job.tracking.report_to)}}
