"""How a job's model predicts rows: the tokens a row is cut to, what is generated, the type of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.modeling.facts import ModelFacts
from raytrain_nlp.modeling.tokenizer import load_tokenizer
from raytrain_nlp.planning.models import model_facts
from raytrain_nlp.planning.split_plans import build_context
from raytrain_nlp.prediction.batches import PredictSpec, batch_size
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Lengths
from raytrain_nlp.user_code import UserObject


def plan_prediction(
    job: TrainJob,
    weights: Path,
    tokenizer_dir: Path,
    labels: list[str],
    options: dict[str, Any],
    most_rows: int | None,
    code_folder: str,
) -> PredictSpec:
    """What predicts rows with a model, without the places where a verb keeps parts of a large prediction.

    Args:
        weights: a folder with a `config.json`, or an adapter's.
        options: keyword arguments of `model.generate`, for tasks that write text.
        most_rows: rows of a forward pass at most; None: as the job and the device suggest.
        code_folder: where the module of `trainer.preprocess` is looked for.

    Raises:
        InputError: the model's config cannot be read.
    """
    tokenizer = load_tokenizer(str(tokenizer_dir))
    facts = model_facts(job, tokenizer, weights)
    lengths, options = _fitted(job, facts, options)
    preprocess = job.trainer.preprocess
    return PredictSpec(
        job=job,
        weights=str(weights),
        dtype=weights_dtype(job),
        tokenizer_dir=str(tokenizer_dir),
        labels=labels,
        context=build_context(tokenizer, labels, facts),
        lengths=lengths,
        parts="",
        chunk_rows=0,
        batch=batch_size(most_rows, job, options, build_task(job.task).writes_text),
        generation=options,
        prefix="",
        preprocess=UserObject(preprocess, "trainer.preprocess", code_folder) if preprocess else None,
        code_folder=code_folder,
    )


def weights_dtype(job: TrainJob) -> str | None:
    """The type of the weights in memory: bf16 on a GPU where the job trains in it (a job on GPUs does, unless it says
    otherwise); None: as the job says, or fp32.
    """
    half = job.workers.use_gpu and job.arguments().get("bf16") and job.model.dtype is None
    return "bfloat16" if half else None


def generation_of(job: TrainJob) -> dict[str, Any]:
    """Keyword arguments of `model.generate` with which the run's evaluations generated; of a task whose evaluations do
    not generate, 128 new tokens at most. Empty for tasks that write no text.
    """
    arguments, task = job.arguments(), build_task(job.task)
    if task.generates:
        options = {
            "max_length": arguments.get("generation_max_length"),
            "num_beams": arguments.get("generation_num_beams"),
        }
        return {key: value for key, value in options.items() if value is not None}
    return {"max_new_tokens": 128, "do_sample": False} if task.writes_text else {}


def _fitted(job: TrainJob, facts: ModelFacts, options: dict[str, Any]) -> tuple[Lengths, dict[str, Any]]:
    """The tokens a row is cut to and the generated tokens, both limited to the positions that the model has."""
    task = build_task(job.task)
    lengths = task.lengths(job.data.max_length, "validation")
    lengths = facts.fitted(lengths if lengths.source else Lengths(job.data.max_length))
    if facts.positions is None:
        return lengths, options
    if task.generates:
        return lengths, {
            **options,
            **({"max_length": min(options["max_length"], facts.target_positions)} if options.get("max_length") else {}),
        }
    if "max_new_tokens" in options:  # what is generated stands behind the row
        new = min(options["max_new_tokens"], max(facts.positions // 2, 1))
        return replace(lengths, source=min(lengths.source, max(facts.positions - new, 1))), {
            **options,
            "max_new_tokens": new,
        }
    return lengths, options
