"""`compute_metrics` of a run: the task's figures, and the user's beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tasks.base import Metrics, Task
from raytrain_nlp.tasks.seq2seq import decode

Compute = Callable[..., Metrics]


class Figures:
    """What evaluation computes; `Trainer` has it as its `compute_metrics`, where the user's class gives no other.

    A language model's logits are reduced to two counts for each row, which the task's figures read. The user's function
    gets the likeliest tokens and the labels, as in run_clm.py and run_mlm.py; for other tasks what the task gets.
    """

    def __init__(self, task: Task, labels: list[str], tokenizer: Any, user: Compute | None = None):
        self.task, self.user = task, user
        self.own = task.build_metrics(labels, tokenizer)

    def __call__(self, prediction: Any, compute_result: bool | None = None) -> Metrics:
        """For code of the user's that calls `self.compute_metrics` itself."""
        batch = {} if compute_result is None else {"compute_result": compute_result}
        return self.user(prediction, **batch) if self.user else self.own(prediction)

    def shown(self, logits: Any, reduced: Any) -> Any:
        """What the user's function reads of a batch; None: what the task reads."""
        if self.task.scores_labels:
            return logits if isinstance(logits, tuple) else None
        first = logits[0] if isinstance(logits, tuple) else logits
        return first.argmax(-1)


def write_generated(path: Path, predictions: Any, labels: Any, tokenizer: Any) -> None:
    """What the exported model generated for each validation row, in their order: JSON Lines of prediction and
    reference.
    """
    pairs = zip(decode(predictions, tokenizer), decode(labels, tokenizer), strict=True)
    with replacing(path) as file:
        file.writelines(
            json.dumps({"prediction": guess, "reference": truth}, ensure_ascii=False) + "\n" for guess, truth in pairs
        )
