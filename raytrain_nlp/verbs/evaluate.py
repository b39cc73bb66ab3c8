"""`evaluate`: computes the metrics of a run's weights on any dataset, with the trainer that evaluated them in training.
Each row is scored once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain_nlp.cluster.auto import settled
from raytrain_nlp.cluster.connection import Connection, connect_ahead
from raytrain_nlp.cluster.session import check_workers
from raytrain_nlp.config import TrainJob, load_job, public_values, without_passwords
from raytrain_nlp.config.auto import without_values
from raytrain_nlp.config.data import sources_of
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.host.signals import stoppable
from raytrain_nlp.launch.fit import Fit
from raytrain_nlp.launch.parallel_map import map_on_cluster
from raytrain_nlp.paths import RunPaths, cache_dir, write_json
from raytrain_nlp.results import Result
from raytrain_nlp.run.observer import Observer, followed
from raytrain_nlp.run.saved_run import Run, Weights, find_run, find_weights
from raytrain_nlp.storage import storage_of

if TYPE_CHECKING:
    from raytrain_nlp.data.prepare import MapPieces
    from raytrain_nlp.data.reading.sources import SourceFile

_TODO = " Run it again."


@dataclass(frozen=True)
class EvaluateResult(Result):
    """The result of an evaluation."""

    run_dir: str
    weights: str
    """The weights that were scored: `model`, or the name of a checkpoint."""
    metrics: dict[str, float]
    """The metrics, by the names that they have in training (`eval_*`)."""
    rows: int
    """Rows that were scored."""
    bad_rows: int
    """Rows that were left out because they cannot be read, or have a label that is none of the run's."""
    report: dict[str, Any] = field(default_factory=dict)
    """For tasks with classes. `classes`: precision, recall, f1-score and support of each class; `confusion_matrix`: a
    row for each true class, a column for each predicted one, in the order of `labels`.
    """
    labels: list[str] = field(default_factory=list)
    """The names of the classes in the order of their ids."""
    scores: str | None = None
    """The file with the result of each row (JSON Lines), if it was asked for."""
    quarantine: str | None = None
    """The file with the rows that cannot be read or used (JSON Lines); None if there are none. Rows with a label that
    is none of the run's are not in it.
    """


@stoppable("stopped. Run it again.")
def evaluate(
    run: str | Path,
    *,
    data: str | list[str] | None = None,
    checkpoint: str | int | None = None,
    scores: str | Path | None = None,
    harness: str | None = None,
    harness_arguments: Sequence[str] = (),
    overrides: Iterable[str] = (),
    verbose: bool = False,
    observer: Observer | None = None,
) -> EvaluateResult:
    """Score a run on a dataset.

    Args:
        run: folder of a run, or of a sweep (its best trial).
        data: files, as `data.validation` of a job, or names of the run's validation sets; default: the run's own data.
        checkpoint: `best`, `last` or a step; None: the run's `model/`, or if there is none its newest good checkpoint.
        scores: a file for the result of each row (JSON Lines).
        harness: score a causal language model on these tasks of lm-evaluation-harness instead (names with commas
            between them); the figures are `harness/TASK/METRIC`, and `rows` is 0.
        harness_arguments: further arguments of `lm_eval`, e.g. `["--num_fewshot", "5"]`.
        overrides: `dotted.key=value` of the job, e.g. `workers.num_workers=1`.
        verbose: show what Ray and the libraries print.
        observer: is told what happens; default: nobody.

    Raises:
        InputError: run, checkpoint or data are wrong; nothing has been started.
        RunError: the evaluation failed.

    Example:
        >>> import raytrain_nlp
        >>> scored = raytrain_nlp.evaluate("runs/quickstart")  # doctest: +SKIP
        >>> sorted(scored.metrics)[:2]  # doctest: +SKIP
        ['eval_accuracy', 'eval_f1']
    """
    observer = observer or Observer()
    if harness:
        from raytrain_nlp.verbs.harness import score_on_harness

        folder, name, figures = score_on_harness(run, harness, harness_arguments, checkpoint, overrides, observer)
        return EvaluateResult(folder, name, figures, rows=0, bad_rows=0)
    found = find_run(run)
    of_machine = settled(_job_of(found, data, overrides))
    job = of_machine.job
    if problems := check_workers(job):
        raise InputError(problems)
    weights = find_weights(found, checkpoint)
    observer.tell(of_machine.line)
    paths = RunPaths(found.paths.run / "evaluations", f"{weights.name}-{uuid.uuid4().hex[:8]}")
    observer.stage("looking at the data")
    try:
        with connect_ahead(job, verbose, say=observer.stage) as connection:
            spec, bad, quarantine = _resolve(found, job, weights, paths, connection, observer, scores is not None)
            connection()
            paths.store.push_tree(paths.run / "weights", again=True)
            from raytrain_nlp.worker.scoring import SCORES, run_scoring

            with followed(paths, observer):
                outcome = Fit(loop=run_scoring, todo=_TODO)(job, spec, paths)
        if "error" in outcome:
            raise outcome["error"]
        if scores is not None:
            Path(scores).expanduser().parent.mkdir(parents=True, exist_ok=True)
            paths.store.fetch(paths.run / SCORES)
            shutil.copyfile(paths.run / SCORES, Path(scores).expanduser())
            paths.store.delete([paths.run / SCORES])
    finally:
        paths.store.delete_tree(paths.run / "weights")
        paths.store.delete_tree(paths.worker_events)
        shutil.rmtree(paths.ray, ignore_errors=True)
    metrics = outcome["result"]["metrics"]
    result = EvaluateResult(
        run_dir=found.paths.address,
        weights=weights.name,
        metrics=metrics,
        rows=int(metrics["eval_samples"]),
        bad_rows=bad,
        report=outcome["result"].get("report", {}),
        labels=found.labels,
        scores=str(scores) if scores is not None else None,
        quarantine=quarantine,
    )
    write_json(paths.run / "evaluation.json", {"data": job.data.validation, **result.to_dict()})
    paths.store.push(paths.run / "evaluation.json")
    return result


def _job_of(run: Run, data: str | list[str] | None, overrides: Iterable[str]) -> TrainJob:
    """The run's job for an evaluation. Weights are sharded only if they were in training (ZeRO-3), as they may not fit
    on one device; else ZeRO is off.
    """
    values = without_values(public_values(run.job), run.chosen)
    if data is not None:
        values["data"] |= _given_data(run, [data] if isinstance(data, str) else data)
    elif isinstance(run.job.data.validation, dict):
        sets = ", ".join(run.job.data.validation)
        raise InputError(
            Problem(
                "--data",
                f"is missing, and the run has several validation sets ({sets})",
                "Name one of them, or a file.",
            )
        )
    if run.job.deepspeed.zero_stage != 3:
        values["deepspeed"] = {"zero_stage": 0}
    job = load_job(values, overrides)
    if not sources_of(job.data.validation):
        raise InputError(Problem("--data", "is missing, and the run has no validation data of its own", "Name a file."))
    return job


def _given_data(run: Run, data: list[str]) -> dict[str, Any]:
    """The section `data` for given files or names of the run's validation sets. `max_validation_rows` of the run holds
    only for its own sets.
    """
    sets = {name: source for name, source in run.job.data.validation_sets().items() if name}
    if unknown := [
        name for name in data if sets and name.isidentifier() and name not in sets and not os.path.exists(name)
    ]:
        raise InputError(
            Problem(
                "--data",
                f"is neither a file nor a validation set of the run ({unknown[0]})",
                nearest(unknown[0], sets) or f"Sets: {', '.join(sets)}.",
            )
        )
    sources = [source for name in data for source in sources_of(sets.get(name, name))]
    return {"validation": sources} if sets.keys() >= set(data) else {"validation": sources, "max_validation_rows": None}


def _resolve(
    run: Run,
    job: TrainJob,
    weights: Weights,
    paths: RunPaths,
    connection: Connection,
    observer: Observer,
    keep_rows: bool,
) -> tuple[Any, int, str | None]:
    """The `ScoringSpec` for the workers, the number of rows left out, and the file that lists those which cannot be
    read or used (None if there are none).
    """
    from raytrain_nlp.data.prepare import QUARANTINE, prepare_tokens
    from raytrain_nlp.data.shards import MANIFEST, TokenStore
    from raytrain_nlp.data.split import Split
    from raytrain_nlp.data.tokenize import PrepareSpec
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.planning.inputs import find_split_files
    from raytrain_nlp.planning.label_names import name_evaluated
    from raytrain_nlp.planning.labels import find_known_rows
    from raytrain_nlp.planning.models import model_facts
    from raytrain_nlp.planning.split_plans import build_context, build_split, store_notes
    from raytrain_nlp.planning.truncation import cut_notes
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.user_code import UserObject
    from raytrain_nlp.verbs.export import write_weights
    from raytrain_nlp.worker.scoring import ScoringSpec

    files = find_split_files(job, "validation", run.storage, "--data")
    job = name_evaluated(job, files, run.labels, "--data")
    task, tokenizer_dir = build_task(job.task), run.token_dir()
    preprocess = (
        UserObject(job.trainer.preprocess, "trainer.preprocess", run.code_folder) if job.trainer.preprocess else None
    )
    tokenizer = load_tokenizer(str(tokenizer_dir))
    facts = model_facts(job, tokenizer, weights.folder)
    lengths = facts.fitted(task.lengths(job.data.max_length, "validation"))
    prepare = PrepareSpec(job.task, str(tokenizer_dir), tokenizer_dir.name, lengths, job.data.max_bad_rows, preprocess)
    observer.stage("preparing tokens")
    folder = cache_dir(run.storage, "tokens") / prepare.key(files)
    store = TokenStore(prepare_tokens(files, prepare, folder, _mapper(files, connection), "--data"))
    for note in store_notes(store, task, "--data"):
        observer.warn(note)
    rows_file, unseen = find_known_rows(store, run.labels, job.data.max_bad_rows)
    rows = min(store.num_rows - len(unseen), store.rows_of(job.data.max_validation_rows))
    validation = build_split(job, store, rows_file, build_context(tokenizer, run.labels, facts), "validation", rows)
    storage_of(store.folder).push_tree(store.folder, last=MANIFEST)
    for note in cut_notes("validation", store.manifest, facts):
        observer.warn(note)
    folder = weights.folder
    paths.run.mkdir(parents=True, exist_ok=True)
    if weights.checkpoint:
        folder = paths.run / "weights"
        write_weights(run, weights, folder, None, False, observer.stage)
    bad = store.manifest["bad_rows"] + len(unseen)
    spec = ScoringSpec(
        job=without_passwords(_on_base(job, run)),
        storage_path=str(paths.storage),
        name=paths.run.name,
        weights=str(folder),
        tokenizer_dir=str(tokenizer_dir),
        labels=run.labels,
        validation=validation,
        eval_steps=Split(validation).plan.steps_per_epoch,
        code_folder=run.code_folder,
        keep_rows=keep_rows,
    )
    return (
        spec,
        bad,
        str(store.folder / QUARANTINE) if store.manifest["bad_rows"] + store.manifest["unlearned"] else None,
    )


def _mapper(files: list[SourceFile], connection: Connection) -> MapPieces:
    """Returns a function that tokenizes pieces of the files: in this process if the files are small, else on the
    cluster.
    """
    from raytrain_nlp.planning.resolve import SMALL_BYTES

    small = sum(file.size for file in files) <= SMALL_BYTES

    def map_pieces(function: Any, items: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        if small:
            connection.connect_if_up()
            return map(function, items)
        connection()
        return map_on_cluster(function, items)

    return map_pieces


def _on_base(job: TrainJob, run: Run) -> TrainJob:
    """The job, which for an adapter on a base model from scratch names the folder that has this base model."""
    if job.lora is None or job.model.config is None:
        return job
    return job.model_copy(update={"model": job.model.model_copy(update={"name_or_path": run.base, "config": None})})
