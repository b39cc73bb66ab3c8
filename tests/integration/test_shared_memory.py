"""The mean of gradients through shared memory: the same bits on all ranks, in the order of the ranks, whatever the size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

ROUNDS = 5


def _gradients(world: int, round_: int, elements: int) -> list[torch.Tensor]:
    return [torch.randn(elements, generator=torch.Generator().manual_seed(100 * round_ + rank)) for rank in range(world)]


def _rank(rank: int, world: int, elements: int, folder: str) -> None:
    from raytrain_nlp.worker import shared_memory

    shared_memory._WINDOW_BYTES, shared_memory._BLOCK = 4096, 100  # several windows, several blocks in each
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    assert shared_memory._can_share()
    state = shared_memory.SharedMean()
    made = [state.mean_(_gradients(world, round_, elements)[rank]) for round_ in range(ROUNDS)]
    torch.save(made, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "elements"), [(2, 1), (3, 2), (3, 2501)])
def test_mean_is_the_sum_in_rank_order_divided(tmp_path: Path, world: int, elements: int) -> None:
    """Fewer elements than ranks, a last window that is short, buffers used again."""
    multiprocessing.spawn(_rank, (world, elements, str(tmp_path)), nprocs=world)
    for round_ in range(ROUNDS):
        gradients = _gradients(world, round_, elements)
        expected = gradients[0]
        for gradient in gradients[1:]:
            expected = expected + gradient
        for rank in range(world):
            assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True)[round_], expected / world)
