"""The widest micro-batch a plan has, as tensors; and the model of a job without weights, as its step is traced."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raytrain_nlp.config import TrainJob
from raytrain_nlp.data.plan import split_batch
from raytrain_nlp.data.split import Split
from raytrain_nlp.tasks import build_task
from raytrain_nlp.tasks.base import Place

_SAMPLED = 2_000


@dataclass(frozen=True)
class Shape:
    """A micro-batch: its rows, the tokens of its longest row, and its tensors."""

    rows: int
    length: int
    tensors: dict[str, Any]
    padded: bool
    """Does attention need a mask: for the padding of this job's micro-batches (the tensors here have none), or between
    packed documents?
    """


def widest_shape(split: Split, job: TrainJob, rows: int, evaluation: bool = False) -> Shape:
    """Build a micro-batch with the most padded tokens: its rows are copies of the longest one, and the last has the
    longest target of up to `_SAMPLED` rows.

    Args:
        rows: rows of a micro-batch. Under a budget of tokens the largest in up to `_SAMPLED` steps of the plan counts.
        evaluation: whether it is a batch of the validation rows.
    """
    lengths, number = split.plan.lengths, split.plan.spec.num_rows
    longest = int(np.argmax(lengths[:number]))
    if split.plan.spec.batch_tokens and not evaluation:
        rows, longest = _widest_of_budget(split, job)
    rows = max(min(rows, number), 1)
    ids: np.ndarray = np.full(rows, longest, dtype=np.int64)
    sample = np.unique(np.linspace(0, number - 1, min(number, _SAMPLED)).astype(np.int64))
    targets = split.fetch(sample).get("labels", [])
    if len(targets) and np.ndim(targets[0]) == 1 and rows > 1:
        ids[-1] = sample[int(np.argmax([len(target) for target in targets]))]
    tensors = (
        split.task.collate(split.fetch(ids), split.spec.context, Place(split.plan.spec.seed, 0, ids))
        | split.task.forward_kwargs()
    )
    padded = bool(np.ptp(lengths[sample]))
    if packing := split.spec.packing:  # other attention than these keeps documents apart without a mask in memory
        padded = packing.kind == "best_fit" and job.model.attention in (None, "eager", "sdpa")
    return Shape(rows, int(lengths[longest]), tensors, padded)


def _widest_of_budget(split: Split, job: TrainJob) -> tuple[int, int]:
    """Rows and longest row of the widest micro-batch under a budget of tokens, among evenly spread steps."""
    best = (0, 1, 0)
    for step in np.unique(np.linspace(0, split.plan.steps_per_epoch - 1, _SAMPLED).astype(int)):
        for micro in split_batch(
            split.plan.batch(0, int(step)), job.workers.num_workers, job.gradient_accumulation_steps
        ):
            for part in micro:
                if len(part):
                    first = int(part[np.argmax(split.plan.lengths[part])])
                    best = max(best, (len(part) * int(split.plan.lengths[first]), len(part), first))
    return best[1], best[2]


def build_traced_model(job: TrainJob, labels: list[str], tokenizer_dir: str) -> Any:
    """The model of a job on the meta device, with its adapter, in the type its forward computes in."""
    from raytrain_nlp.modeling.fused_norm import fuse_norms
    from raytrain_nlp.modeling.lora import apply_lora, without_weights
    from raytrain_nlp.modeling.model import build_empty_model
    from raytrain_nlp.modeling.tokenizer import load_tokenizer

    task = build_task(job.task)
    model = build_empty_model(job.model, task, labels, load_tokenizer(tokenizer_dir))
    if job.workers.use_gpu:
        fuse_norms(model)
    if job.lora is not None:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = apply_lora(model, without_weights(job.lora), task, False)
    values = job.arguments()
    half = values.get("bf16") or values.get("fp16") or job.model.weights_dtype in ("bfloat16", "float16")
    return model.to(torch.bfloat16) if half else model


@contextlib.contextmanager
def checkpoint_activations(model: Any, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing while inside, where it is wanted and the model has it."""
    if not wanted or not getattr(model, "supports_gradient_checkpointing", True):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the method has two names in transformers
        model.config.use_cache = False
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if any(not parameter.requires_grad for parameter in model.parameters()):
            model.enable_input_require_grads()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()
