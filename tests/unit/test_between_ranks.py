"""What ranks tell each other, with the other ranks played: small objects, whether an update may be made, what a loss is
a mean over.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raytrain_nlp.distributed import collectives, consensus, normalizer
from raytrain_nlp.distributed.collectives import broadcast_object, gather_objects
from raytrain_nlp.distributed.consensus import Agreement
from raytrain_nlp.distributed.normalizer import GlobalWeight
from raytrain_nlp.errors import NonFiniteLossError


class Ranks:
    """`torch.distributed` of one rank of several; `others` are what the rest have, in rank order, `objects` what they
    say when objects are gathered.
    """

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self, rank: int, others: list[Any], objects: list[Any] | None = None):
        self.rank, self.others, self.objects, self.waited = rank, others, objects or others, 0

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return len(self.others) + 1

    def get_rank(self) -> int:
        return self.rank

    def _all(self, value: Any, others: list[Any] | None = None) -> list[Any]:
        others = self.others if others is None else others
        return [*others[: self.rank], value, *others[self.rank :]]

    def all_gather_object(self, gathered: list[Any], value: Any) -> None:
        gathered[:] = self._all(value, self.objects)

    def gather_object(self, value: Any, gathered: list[Any] | None, dst: int) -> None:
        assert (gathered is not None) == (self.rank == dst), "torch refuses a list on other ranks"
        if gathered is not None:
            gathered[:] = self._all(value)

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        box[0] = self._all(box[0])[src]

    def all_reduce(self, tensor: torch.Tensor, op: Any = torch.distributed.ReduceOp.SUM, async_op: bool = False) -> Any:
        assert async_op, "no rank waits for another between forward and backward"

        def wait() -> None:
            self.waited += 1
            values = self._all(tensor.item())
            tensor.fill_(max(values) if op == self.ReduceOp.MAX else sum(values))

        return SimpleNamespace(wait=wait)


def of(monkeypatch: pytest.MonkeyPatch, rank: int, others: list[Any], objects: list[Any] | None = None) -> Ranks:
    ranks = Ranks(rank, others, objects)
    for module in (collectives, consensus, normalizer):
        monkeypatch.setattr(module, "dist", ranks)
    return ranks


def test_alone_a_rank_hears_itself() -> None:
    assert (
        gather_objects("a") == ["a"]
        and gather_objects(None, to_rank=0) == [None]
        and broadcast_object({"x": 1}) == {"x": 1}
    )


def test_objects_arrive_in_rank_order_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    of(monkeypatch, 1, ["a", "c"])
    assert gather_objects("b") == ["a", "b", "c"]
    assert gather_objects("b", to_rank=1) == ["a", "b", "c"]
    assert gather_objects("b", to_rank=0) == []
    assert broadcast_object("b") == "a"


BATCH = SimpleNamespace(rows=torch.tensor([3, 8]), step=4)


def agreement(stop: bool = False, move: bool = False) -> Agreement:
    return Agreement(lambda row: f"train.jsonl:{row + 1}", lambda: stop, lambda: move)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run_before_its_update_and_names_the_rows(loss: float) -> None:
    agreed = agreement()
    agreed.begin(torch.tensor(1.5), BATCH)
    agreed.settle()
    agreed.begin(torch.tensor(loss), BATCH)
    with pytest.raises(
        NonFiniteLossError, match=rf"the loss is {loss} at step 5, .* 3 \(train.jsonl:4\), 8 \(train.jsonl:9\)"
    ):
        agreed.settle()
    agreed.settle()  # it has been told


def test_all_ranks_stop_for_the_loss_of_one_and_name_that_ones_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that went on would wait for ever for the one that ended."""
    of(monkeypatch, 0, [1.0], objects=[(math.nan, [12])])
    agreed = agreement()
    agreed.begin(torch.tensor(0.5), BATCH)
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 5, .*: 12 \(train.jsonl:13\)\."):
        agreed.settle()


@pytest.mark.parametrize(
    ("mine", "other", "stopped", "moving"),
    [
        ({}, 0.0, False, False),
        ({"stop": True}, 0.0, True, False),
        ({"move": True}, 0.0, False, True),
        ({}, 2.0, True, False),
        ({}, 0.5, False, True),
        ({"move": True}, 2.0, True, False),
        ({"stop": True, "move": True}, 0.5, True, False),
    ],
)
def test_one_that_is_asked_is_enough(
    monkeypatch: pytest.MonkeyPatch, mine: dict[str, bool], other: float, stopped: bool, moving: bool
) -> None:
    ranks = of(monkeypatch, 0, [other])
    agreed = agreement(**mine)
    agreed.begin(torch.tensor(0.5), BATCH)
    assert not agreed.stopped and not agreed.moving and not ranks.waited
    agreed.settle()
    assert (agreed.stopped, agreed.moving, ranks.waited) == (stopped, moving, 1)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Results arrive as from a GPU; what the host waits for, in order."""
    waited: list[str] = []

    def sent(value: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return value, SimpleNamespace(synchronize=lambda: waited.append(f"{float(value)}"))

    monkeypatch.setattr(consensus, "_read_later", lambda value: True)
    monkeypatch.setattr(consensus, "to_host", sent)
    return waited


def test_on_a_gpu_a_result_is_read_one_step_later(on_a_gpu: list[str]) -> None:
    agreed = agreement()
    for loss in (1.5, math.nan):
        agreed.begin(torch.tensor(loss), BATCH)
        agreed.settle()
    assert on_a_gpu == ["0.0"]  # of the first step, while the second is under way
    agreed.begin(torch.tensor(0.5), SimpleNamespace(rows=torch.tensor([1]), step=5))
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 5, .* 3 \(train.jsonl:4\)"):
        agreed.settle()


def test_on_a_gpu_all_results_are_read_before_a_checkpoint(on_a_gpu: list[str]) -> None:
    agreed = agreement()
    agreed.begin(torch.tensor(math.nan), BATCH)
    agreed.settle()
    assert not on_a_gpu
    with pytest.raises(NonFiniteLossError, match="at step 5"):
        agreed.settle_all()


def test_being_asked_to_stop_goes_before_a_bad_loss() -> None:
    """A trial that a scheduler has stopped is not reported as failed."""
    agreed = agreement(stop=True)
    agreed.begin(torch.tensor(math.nan), BATCH)
    agreed.settle()
    assert agreed.stopped


def test_what_was_begun_before_an_error_is_dropped() -> None:
    agreed = agreement()
    agreed.begin(torch.tensor(math.nan), BATCH)
    agreed.drop()
    agreed.settle()
    assert not agreed.stopped


def parts(*weights: int) -> list[Any]:
    return [SimpleNamespace(weight=weight, global_rows=24) for weight in weights]


def test_a_loss_over_tokens_is_divided_by_those_of_all_ranks_and_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = of(monkeypatch, 0, [10, 100])
    weight = GlobalWeight(parts(3, 4), by_rows=False, device="cpu")
    assert not ranks.waited, "nothing waits before it is asked"
    assert (
        float(weight.value()) == 117
        and weight.value().dtype == torch.float64
        and float(weight.value()) == 117
        and ranks.waited == 1
    )


def test_a_loss_over_rows_is_divided_by_what_the_plan_says_and_nothing_by_zero() -> None:
    assert GlobalWeight(parts(3, 4), by_rows=True, device="cpu").value() == 24
    assert float(GlobalWeight(parts(0), by_rows=False, device="cpu").value()) == 1
    assert float(GlobalWeight(parts(2**24, 1), by_rows=False, device="cpu").value()) == 2**24 + 1, (
        "float32 cannot count so far"
    )
