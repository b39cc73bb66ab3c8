"""The loss without logits under ZeRO-3, of further kinds of heads."""

from __future__ import annotations

import pytest
from sharded_loss import check_two_ranks


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_two_ranks_of_zero_3_train_as_with_logits(family: str) -> None:
    """A head of its own, and one that is tied to the embedding."""
    check_two_ranks(family)
