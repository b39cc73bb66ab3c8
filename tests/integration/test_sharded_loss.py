"""The loss without logits under ZeRO-3. Other heads: tests/cluster/test_sharded_heads.py."""

from __future__ import annotations

from sharded_loss import check_two_ranks


def test_two_ranks_of_zero_3_train_as_with_logits() -> None:
    """A head that is tied to the embedding, with a bias below other modules."""
    check_two_ranks("bert")
