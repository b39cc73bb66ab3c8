"""The loss of a task whose model does not compute it: what the trainer asks of it.

Everything a loss and its figures are made of are `values`, float32 [rows, values]: a micro-batch's have a gradient, and
those of an evaluation are joined in the order of the rows. So the loss of an evaluation does not depend on its batches.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

REFERENCE = "reference"
"""Input with what the reference model says of the rows: int32 [rows, sequences], the bits of float32 numbers, since
floating inputs are rounded to the precision of the training.
"""


class Objective(Protocol):
    """One loss. Tensors are torch's; nothing is read back from their device."""

    reads_reference: bool
    """Is the loss relative to what a reference model says? It is in `inputs[REFERENCE]`, or the model is a PEFT model
    and without its adapter the reference.
    """

    reads_batch: bool
    """Does the loss of a row depend on its whole global batch, by `batch_sums`?"""

    def values(self, model: Any, plain: Any, inputs: dict[str, Any], evaluates: bool) -> Any:
        """The values of a micro-batch: float32 [rows, values].

        Args:
            model: as the trainer has wrapped it, for forwards with a gradient.
            plain: the model itself, for others.
            evaluates: are these for an evaluation? In training `batch_sums` knows some already.
        """

    def reference(self, plain: Any, inputs: dict[str, Any]) -> Any:
        """What a reference model, `plain`, says of the rows: float32 [rows, sequences], without gradient."""

    def batch_sums(self, plain: Any, parts: list[tuple[dict[str, Any], int]]) -> Any:
        """What the loss of a row needs of its whole global batch, of this rank's part: a tensor that is summed over the
        ranks. Only with `reads_batch`.

        Args:
            parts: of each micro-batch its inputs, and how many of their rows count.
        """

    def sums_of(self, values: Any) -> Any:
        """`batch_sums` of the values of an evaluation; None without `reads_batch`."""

    def loss(self, values: Any, sums: Any) -> Any:
        """The mean loss of rows, shape [].

        Args:
            sums: `batch_sums` of the global batch that the rows are of; None without `reads_batch`.
        """

    def figure_sums(self, values: Any, sums: Any) -> Any:
        """What the figures of any number of rows are made of, summed over rows: float32 of one dimension."""

    def figures(self, sums: list[float]) -> dict[str, float]:
        """Figures by TRL's names, of the sum of `figure_sums` of some batches."""


def joined_figures(objective: Objective, values: Any) -> dict[str, float]:
    """The figures of all rows; `values`: float32 [rows, values]."""
    given = _tensor(values)
    return objective.figures(objective.figure_sums(given, objective.sums_of(given)).tolist())


def joined_loss(objective: Objective, values: Any) -> float:
    """The mean loss of all rows."""
    given = _tensor(values)
    return float(objective.loss(given, objective.sums_of(given)))


def _tensor(values: Any) -> Any:
    """In float64, so that the order in which rows are added up is no matter."""
    import torch

    return torch.from_numpy(np.asarray(values, dtype=np.float64))
