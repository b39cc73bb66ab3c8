"""Which modules run is the same on all ranks: layerdrop's draws, and experts that no token of a rank reaches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raytrain_nlp.modeling.rank_symmetry import SharedDraws, apply_experts, forget_gradients


class Stack(nn.Module):
    """Layers that are skipped at random, drawn as the models of transformers draw: torch's, NumPy's or Python's
    numbers.
    """

    def __init__(self, draw: Callable[[], Any], layerdrop: float = 0.4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
        self.dropout, self.layerdrop, self.draw = nn.Dropout(0.5), layerdrop, draw
        self.ran: list[int] = []
        self.dropped: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran = []
        for i, layer in enumerate(self.layers):
            if self.training and self.draw() < self.layerdrop:
                continue
            self.ran.append(i)
            x = layer(x)
        self.dropped.append(self.dropout(torch.ones(64)))
        return x


DRAWS = {
    "torch": lambda: torch.rand([]),
    "torch, one": lambda: torch.rand(1),
    "numpy": lambda: np.random.random(),
    "numpy, uniform": lambda: np.random.uniform(0, 1),
    "python": lambda: random.uniform(0, 1),
}


def trained(
    draw: Callable[[], Any], rank: int, steps: range, forwards: int = 2, layerdrop: float = 0.4
) -> tuple[list[list[int]], Stack]:
    """Layers that ran in each forward of some steps on a rank, whose own generators are seeded by its number."""
    stack = nn.Sequential(Stack(draw, layerdrop))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(100 + rank)
    draws = SharedDraws(7)
    draws.apply(stack)
    found = []
    for step in steps:
        draws.begin(step)
        for _ in range(forwards):
            stack(torch.ones(1, 2))
            found.append(stack[0].ran)
    return found, stack[0]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_all_ranks_skip_the_same_layers_and_drop_their_own_activations(draw: Callable[[], Any]) -> None:
    (first, one), (second, other) = trained(draw, 0, range(20)), trained(draw, 1, range(20))
    assert first == second and len({tuple(ran) for ran in first}) > 10, "another set in each forward"
    assert 0.5 < np.mean([len(ran) for ran in first]) / 6 < 0.7
    assert all(not torch.equal(a, b) for a, b in zip(one.dropped, other.dropped, strict=True))


def test_a_resumed_training_skips_what_the_whole_one_skips() -> None:
    whole, _ = trained(DRAWS["torch"], 0, range(10))
    rest, _ = trained(DRAWS["torch"], 1, range(6, 10))
    assert rest == whole[12:]


def test_the_ranks_own_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    stack = Stack(DRAWS["numpy"])
    SharedDraws(7).apply(nn.Sequential(stack))
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state()
    stack.dropout.p = 0.0
    stack(torch.ones(1, 2))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[:2] and torch.equal(
        torch.get_rng_state(), before[2]
    )


def test_a_model_without_layerdrop_is_left_as_it_is() -> None:
    stack = Stack(DRAWS["torch"], layerdrop=0.0)
    draws = SharedDraws(7)
    draws.apply(stack)
    assert draws.modules == [] and "forward" not in vars(stack)


def test_evaluation_draws_nothing() -> None:
    _, stack = trained(DRAWS["torch"], 0, range(1))
    stack.eval()
    stack(torch.ones(1, 2))
    assert stack.ran == list(range(6))


class Experts(nn.ModuleDict):
    """A list of experts of which those run that a token goes to."""

    def __init__(self) -> None:
        super().__init__({f"expert_{i}": nn.Linear(2, 2) for i in range(4)})

    def forward(self, x: torch.Tensor, hit: list[int]) -> torch.Tensor:
        result = torch.zeros_like(x)
        for i in hit:
            result = result + self[f"expert_{i}"](x)
        return result


class Block(nn.Module):
    """The same, in the module that holds the list."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(2, 4), nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    def forward(self, x: torch.Tensor, hit: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        result = torch.zeros_like(x)
        for i in hit:
            result = result + self.experts[i](x)
        return result, self.gate(x)


@pytest.mark.parametrize("kind", [Experts, Block])
@pytest.mark.parametrize("hit", [[0], [1, 3], []])
def test_all_experts_have_a_gradient_whoever_was_hit(kind: type, hit: list[int]) -> None:
    torch.manual_seed(0)
    plain, joined = kind(), kind()
    joined.load_state_dict(plain.state_dict())
    model = nn.Sequential(joined)
    assert apply_experts(model, zero3=False) == ["0"]
    x = torch.ones(3, 2, requires_grad=True)
    results = [module(x, hit) for module in (plain, joined)]
    results = [result[0] if isinstance(result, tuple) else result for result in results]
    assert torch.equal(*results)
    results[1].sum().backward()
    (results[0].sum() + 0 * x.sum()).backward()
    for mine, truth in zip(joined.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, torch.zeros_like(truth) if truth.grad is None else truth.grad)


def test_a_plain_list_of_layers_is_no_list_of_experts() -> None:
    assert apply_experts(nn.Sequential(Stack(DRAWS["torch"])), zero3=False) == []


def test_the_gradients_of_the_step_before_are_forgotten() -> None:
    master = torch.ones(2, requires_grad=True)
    master.grad = torch.ones(2)
    optimizer = type(
        "ZeRO", (), {"grad_partitions_flat_buffer": torch.ones(3), "fp32_partitioned_groups_flat": [master]}
    )()
    forget_gradients(optimizer)
    assert not optimizer.grad_partitions_flat_buffer.any() and not master.grad.any()
    forget_gradients(torch.optim.SGD([master]))
