"""What all rows of a global batch are compared with, where its micro-batches are trained one after the other: the
vectors of all of them are computed first, without a graph (see `distributed.row_pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raytrain_nlp.distributed.device import rng_state, set_rng_state
from raytrain_nlp.distributed.row_pool import POOL, Values

Draws = dict[str, Any]
"""States of random generators."""


def learn_vectors(
    batches: list[Any], micro_batches: list[Any], accumulation: int, embed: Callable[[Any, Any], Values]
) -> list[Draws]:
    """Compute the vectors of this rank's part of a global batch, and take those of the others. Every rank must call it.

    Args:
        batches: the inputs of each micro-batch.
        micro_batches: the `MicroBatch` of each.
        accumulation: micro-batches of each rank in a global batch.
        embed: from inputs and their micro-batch to what is known of its rows.

    Returns:
        The random state of each forward, from which the one that is trained has to start: with the same dropout it
        gives the same vectors.
    """
    values, states = [], []
    with torch.no_grad():
        for inputs, micro_batch in zip(batches, micro_batches, strict=True):
            states.append(_current_draws())
            values.append(embed(inputs, micro_batch))
    POOL.learn(values, accumulation, micro_batches[0].global_rows)
    return states


def _current_draws() -> Draws:
    """The states of this process's generators of random numbers, of which dropout and noise are drawn."""
    return {"torch": torch.get_rng_state(), **rng_state()}


def restore_draws(states: Draws) -> None:
    """Draw again from a state that `learn_vectors` returned."""
    torch.set_rng_state(states["torch"])
    set_rng_state(states)
