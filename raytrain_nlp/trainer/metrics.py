"""`compute_metrics` of a run: the task's own metrics, and those of the user's function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from raytrain_nlp.storage.atomic import replacing
from raytrain_nlp.tasks.base import Metrics, Task

Compute = Callable[..., Metrics]
_BATCH_ROWS = 64


class Figures:
    """The metrics that evaluation computes. It is the `compute_metrics` of the run's `Trainer`, unless the user's class
    passes another.

    The task's metrics of a language model read two counts for each row, to which its logits are reduced. The user's
    function gets the most likely token ids and the labels instead, as in transformers' run_clm.py and run_mlm.py. For
    other tasks it gets what the task's metrics get.
    """

    def __init__(
        self, task: Task, labels: list[str], tokenizer: Any, user: Compute | None = None, batch_rows: int | None = None
    ):
        """`batch_rows`: rows of a global batch of the training; None: not known before, as with `data.batch_tokens`."""
        self.task, self.user, self.batch_rows = task, user, batch_rows or _BATCH_ROWS
        self.own = task.build_metrics(labels, tokenizer)

    def __call__(self, prediction: Any, compute_result: bool | None = None) -> Metrics:
        """Call the user's function, or the task's metrics without one: for a user's class that calls
        `self.compute_metrics` itself.
        """
        batch = {} if compute_result is None else {"compute_result": compute_result}
        return self.user(prediction, **batch) if self.user else self.own(prediction)

    def shown(self, logits: Any, reduced: Any) -> Any:
        """The predictions of a batch for the user's function: token ids [rows, tokens] of a language model, the tuple
        of all outputs where a model has several; the logits where the task's metrics read several figures of them;
        None where it reads `reduced`, as those do.
        """
        if self.task.scores_labels:
            return logits if isinstance(logits, tuple) or isinstance(reduced, tuple) else None
        first = logits[0] if isinstance(logits, tuple) else logits
        return first.argmax(-1)


def write_generated(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write what was generated for each validation row to `path`: JSON Lines with `prediction` and `reference`, as
    `Task.score_rows` gives them.
    """
    with replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
