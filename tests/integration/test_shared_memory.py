"""The mean of gradients through shared memory: the same bits on all ranks, in the order of the ranks, whatever the
size.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

ROUNDS = 5


def _gradients(world: int, round_: int, buckets: list[int]) -> list[list[torch.Tensor]]:
    """Of each rank, by bucket."""
    generators = [torch.Generator().manual_seed(100 * round_ + rank) for rank in range(world)]
    return [[torch.randn(elements, generator=generator) for elements in buckets] for generator in generators]


def _rank(rank: int, world: int, rounds: list[list[int]], folder: str) -> None:
    from raytrain_nlp.cpu import gradient_mean

    gradient_mean._WINDOW_BYTES, gradient_mean._BLOCK = 4096, 100  # several windows, several blocks in each
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    assert gradient_mean._can_share()
    state = gradient_mean.SharedMean()
    made = []
    for round_, buckets in enumerate(rounds):
        mine = _gradients(world, round_, buckets)[rank]
        futures = [state.add(bucket, last=number == len(mine) - 1) for number, bucket in enumerate(mine)]
        assert all(future.done() for future in futures)
        assert all(future.value() is bucket for future, bucket in zip(futures, mine))
        made.append(mine)
    torch.save(made, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "rounds"),
    [
        (2, [[1]] * ROUNDS),
        (3, [[2]] * ROUNDS),
        (3, [[2501]] * ROUNDS),  # larger than a window
        (2, [[100, 7, 300]] * ROUNDS),  # one group
        (3, [[700, 300, 1, 2501, 900, 200]] * ROUNDS),  # several groups
        (
            2,
            [[10], [900, 17], [10, 4], [2501, 5], [900, 17]],
        ),  # other buckets than before, as DDP makes them after its first step
    ],
)
def test_mean_is_the_sum_in_rank_order_divided(tmp_path: Path, world: int, rounds: list[list[int]]) -> None:
    """Fewer elements than ranks, a last piece that is short, windows used again."""
    multiprocessing.spawn(_rank, (world, rounds, str(tmp_path)), nprocs=world)
    for round_, buckets in enumerate(rounds):
        gradients = _gradients(world, round_, buckets)
        for number in range(len(buckets)):
            expected = gradients[0][number]
            for gradient in gradients[1:]:
                expected = expected + gradient[number]
            for rank in range(world):
                assert torch.equal(
                    torch.load(tmp_path / f"{rank}.pt", weights_only=True)[round_][number], expected / world
                )
