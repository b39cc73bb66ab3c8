"""The loss of a task that its model does not compute (`tasks.objective`), in one training: what rows need of their
whole global batch, found before the first of its micro-batches, and the figures of the rows since the last log.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from raytrain_nlp.compat.transformers import prepared_inputs
from raytrain_nlp.tasks.objective import Objective
from raytrain_nlp.trainer.host import TrainerHost
from raytrain_nlp.trainer.objective.reference import Reference


class OwnLoss:
    """Args:
    objective: the task's.
    reference: what the reference model says of the job's rows, where that is computed before training.
    """

    def __init__(self, objective: Objective, reference: Reference | None = None):
        self.objective, self.reference = objective, reference
        self._batches: list[Any] | None = None
        self._sums: Any = None
        self._logged: Any = None
        self._figures: dict[str, float] = {}

    def begin(self, batches: list[Any]) -> None:
        """A new global batch; `batches` are this rank's micro-batches of it."""
        self._batches = batches

    def compute(self, trainer: TrainerHost, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """The mean loss of a micro-batch, shape [], and its values, [rows, values]. Every rank must call it alike."""
        objective, step = self.objective, trainer._feed.step
        plain = trainer.accelerator.unwrap_model(model)
        sums = self._sums_of_batch(trainer, plain) if step is not None else None
        values = objective.values(model, plain, inputs, evaluates=step is None)
        if step is None:
            sums = objective.sums_of(values)
        else:
            self._note(values.detach(), sums, len(step.micro_batch.rows))
        return objective.loss(values, sums), values

    def _sums_of_batch(self, trainer: TrainerHost, plain: Any) -> Any:
        if not self.objective.reads_batch:
            return None
        if self._batches is not None:
            parts = [(prepared_inputs(trainer, batch), len(batch.micro_batch.rows)) for batch in self._batches]
            self._batches, self._sums = None, self.objective.batch_sums(plain, parts)
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(self._sums)
        return self._sums

    def _note(self, values: Any, sums: Any, rows: int) -> None:
        found = self.objective.figure_sums(values, sums) * min(rows, 1)  # a rank without rows repeats one
        self._logged = found if self._logged is None else self._logged + found

    def gather_figures(self) -> None:
        """Take the figures of all ranks' rows since the last call, for the log. Every rank must call it; it waits for
        the device.
        """
        if self._logged is None:
            return
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._logged)
        self._figures, self._logged = self.objective.figures(self._logged.tolist()), None

    def read(self) -> dict[str, float]:
        """The figures that were gathered, once."""
        found, self._figures = self._figures, {}
        return found
