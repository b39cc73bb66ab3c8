"""`compute_metrics` of a run: the task's figures, and the user's beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import EvalPrediction

from raytrain_nlp.files import replacing
from raytrain_nlp.tasks.base import Metrics, Task
from raytrain_nlp.tasks.seq2seq import decode

Compute = Callable[[Any], Metrics]


def build_metrics(task: Task, labels: list[str], tokenizer: Any, user: Compute | None) -> tuple[Compute, Callable[[Any, Any], Any], bool]:
    """`compute_metrics`, `preprocess_logits_for_metrics`, and whether evaluation keeps labels.

    A language model's logits are reduced to a count for each row. The user's function gets the likeliest tokens and the
    labels, as in run_clm.py and run_mlm.py; for other tasks what the task gets.
    """
    own = task.build_metrics(labels, tokenizer)
    if user is None:
        return own, task.reduce_logits, task.scores_labels
    if task.scores_labels:
        return lambda prediction: {**own(prediction), **user(prediction)}, task.reduce_logits, True

    def compute_metrics(prediction: Any) -> Metrics:
        counts, best = prediction.predictions
        mine = own(EvalPrediction(predictions=counts, label_ids=prediction.label_ids, losses=prediction.losses))
        return {**mine, **user(EvalPrediction(predictions=best, label_ids=prediction.label_ids))}

    def reduce_logits(logits: Any, labels: Any) -> Any:
        first = logits[0] if isinstance(logits, tuple) else logits
        return task.reduce_logits(logits, labels), first.argmax(-1)

    return compute_metrics, reduce_logits, True


def write_generated(path: Path, predictions: Any, labels: Any, tokenizer: Any) -> None:
    """What the exported model generated for each validation row, in their order: JSON Lines of prediction and reference."""
    pairs = zip(decode(predictions, tokenizer), decode(labels, tokenizer), strict=True)
    with replacing(path) as file:
        file.writelines(json.dumps({"prediction": guess, "reference": truth}, ensure_ascii=False) + "\n" for guess, truth in pairs)
