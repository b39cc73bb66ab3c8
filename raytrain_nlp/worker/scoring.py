"""Evaluation alone: the weights of a folder on the rows of one split, scored by the trainer that scores them while
training.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.lora import keeps_base
from raytrain_nlp.data.split import Split, SplitSpec
from raytrain_nlp.paths import RunPaths
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tracking.events import EventLog
from raytrain_nlp.worker.loop import run_guarded

SCORES = "scores.jsonl"
_SPLIT = "validation"


@dataclass(frozen=True)
class ScoringSpec:
    """One evaluation, as its workers see it. Plain values only."""

    job: TrainJob
    """The run's job; its model is the base of `weights` where these are an adapter's."""
    storage_path: str
    name: str
    weights: str
    """Folder of a model or an adapter."""
    tokenizer_dir: str
    labels: list[str]
    validation: SplitSpec
    eval_steps: int
    code_folder: str
    keep_rows: bool
    """Write what was found for each row."""


def run_scoring(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's `train_loop_per_worker`; returns as `worker.loop.run_worker` does."""
    return run_guarded(config["spec"], _score)


def _score(spec: ScoringSpec, paths: RunPaths, scratch: str) -> dict[str, Any]:
    from raytrain_nlp.trainer.kept_predictions import write_predictions

    rank = int(os.environ["RANK"])
    for folder in (spec.weights, spec.job.model.name_or_path):
        if folder:
            storage_of(folder).fetch_tree(Path(folder))
    EventLog(paths.events if rank == 0 else None).write(
        "start", step=0, world_size=int(os.environ["WORLD_SIZE"]), pids=[os.getpid()]
    )
    trainer, task = _build_trainer(spec, spec.job, paths, scratch, _find_reference(spec, paths, scratch))
    metrics = {key: value for key, value in trainer.evaluate().items() if key.startswith("eval_")}
    if not trainer._feed.scored:  # not the first rank
        return {"metrics": metrics}
    predictions, truth = trainer._feed.scored[""]
    if spec.keep_rows:
        _write_rows(
            paths.run / SCORES,
            Split(spec.validation),
            task.joins_rows,
            task.score_rows(predictions, truth, spec.labels, trainer.processing_class),
        )
        paths.store.push(paths.run / SCORES)
    feed = trainer._feed
    write_predictions(paths.predictions, None, feed.scored, feed, spec.labels, trainer.processing_class)
    if paths.predictions.exists():
        paths.store.push(paths.predictions)
    return {"metrics": metrics, "report": task.build_report(predictions, truth, spec.labels)}


def _find_reference(spec: ScoringSpec, paths: RunPaths, scratch: str) -> Any:
    """What the reference model says of the rows: the run's model as it was before training, which is held before the
    trained one is loaded, and then let go. None where the loss needs none, or the model without its adapter is it.
    """
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.trainer.objective.reference import Reference
    from raytrain_nlp.worker.losses import share_of

    objective = build_task(spec.job.task).build_objective()
    adapted = (Path(spec.weights) / "adapter_config.json").exists() and keeps_base(spec.job.lora or {})
    if objective is None or not objective.reads_reference or adapted:
        return None
    reference = Reference(None, paths.store, {_SPLIT: spec.validation}, share_of(spec.job))
    trainer, _ = _build_trainer(spec, spec.job, paths, scratch, None, untrained=True)
    trainer.prepare_to_evaluate()
    reference.find_or_compute(trainer, objective, untrained=True)
    trainer.release()
    return reference


def _build_trainer(
    spec: ScoringSpec, job: TrainJob, paths: RunPaths, scratch: str, reference: Any, untrained: bool = False
) -> tuple[Any, Any]:
    """A trainer that evaluates, and the task.

    Args:
        reference: what the reference model says of the rows; None: nothing.
        untrained: with the model that the run began with; else with the trained weights.
    """
    from transformers import PrinterCallback, set_seed

    from raytrain_nlp.modeling.facts import fit_generation
    from raytrain_nlp.modeling.fused_norm import fuse_norms
    from raytrain_nlp.modeling.load import load_trained
    from raytrain_nlp.modeling.model import load_model
    from raytrain_nlp.modeling.tokenizer import load_tokenizer
    from raytrain_nlp.tasks import build_task
    from raytrain_nlp.trainer.loader import EvalLoader, Share
    from raytrain_nlp.trainer.metrics import Figures
    from raytrain_nlp.trainer.objective.own_loss import OwnLoss
    from raytrain_nlp.trainer.training_step import Feed
    from raytrain_nlp.trainer.user_rows import PlanRows, RowsReader
    from raytrain_nlp.worker.arguments import apply_deepspeed_environment, build_arguments
    from raytrain_nlp.worker.callbacks import EvalProgress
    from raytrain_nlp.worker.extensions import build_trainer, find_user_function

    if job.deepspeed.enabled:
        apply_deepspeed_environment(job.workers.use_gpu, job.arguments().get("ddp_timeout", 1800))
    task = build_task(job.task)
    arguments, tokenizer = build_arguments(job, scratch, task.generates), load_tokenizer(spec.tokenizer_dir)
    set_seed(arguments.seed)
    compute = find_user_function(job, "compute_metrics", spec.code_folder)
    figures = Figures(task, spec.labels, tokenizer, compute, job.global_batch_size)
    where: Share = {
        "world_size": arguments.world_size,
        "rank": arguments.process_index,
        "cpus": job.data.feed_cpus_per_worker,
    }
    loader = EvalLoader(spec.validation, PlanRows(spec.validation), steps=spec.eval_steps, **where)
    loader.beside = reference.beside(_SPLIT) if reference else None
    model = (
        load_model(job.model, task, spec.labels, tokenizer)
        if untrained
        else load_trained(Path(spec.weights), job.model, task, spec.labels, tokenizer)
    )
    if job.workers.use_gpu:
        fuse_norms(model)
    fit_generation(arguments, model.config)
    rows = RowsReader(
        job, spec.tokenizer_dir, tokenizer, spec.validation.context, Path(scratch), spec.code_folder, arguments
    )
    feed = Feed(
        task,
        figures,
        rows,
        eval_loaders={"": loader},
        gather_for_generation=getattr(job.task, "gather_for_generation", False),
        own=OwnLoss(objective, reference) if (objective := task.build_objective()) else None,
    )
    callbacks = [EvalProgress(paths.progress, spec.eval_steps)] if arguments.process_index == 0 else []
    trainer = build_trainer(job, spec.code_folder, feed, model, arguments, tokenizer, callbacks)
    trainer.remove_callback(PrinterCallback)
    return trainer, task


def _write_rows(path: Path, split: Split, joined: bool, rows: Any) -> None:
    """A line for each row, in their order: number, place in its file, and what was found. `joined`: they are rows of
    data, else those of the split.
    """
    firsts = split.store.firsts if joined else None
    with replacing(path) as file:
        for number, row in enumerate(rows):
            source, _, line = split.locate(number if firsts is None else int(firsts[number])).rpartition(":")
            file.write(
                json.dumps({"row": number, "source": source, "line": int(line), **row}, ensure_ascii=False) + "\n"
            )
