"""The plan: every row once, the same batches for equal specs, any batch found at once, little padding. No Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raytrain_nlp.data import plan as plan_module
from raytrain_nlp.data.plan import Plan, PlanSpec, split_batch


def lengths_of(rows: int, seed: int = 0) -> np.ndarray:
    """Log-normal, median 33, at most 128: like sentences."""
    draw = np.random.default_rng(seed)
    return np.clip(draw.lognormal(3.5, 0.6, rows), 3, 128).astype(np.int32)


def epoch_of(plan: Plan, epoch: int) -> list[np.ndarray]:
    return [plan.batch(epoch, index) for index in range(plan.steps_per_epoch)]


@pytest.mark.parametrize("rows", [1, 3, 16, 255, 256, 257, 1003, 70_000])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_each_epoch_is_exactly_the_rows(rows: int, strategy: str) -> None:
    plan = Plan(PlanSpec(rows, 7, strategy, 16), lengths_of(rows))
    for epoch in (0, 3):
        batches = epoch_of(plan, epoch)
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(rows))
        assert [len(batch) for batch in batches] == [16] * (rows // 16) + ([rows % 16] if rows % 16 else [])


@pytest.mark.parametrize("rows", [1, 257, 1003, 70_000])
def test_token_budget_holds_and_each_epoch_is_exactly_the_rows(rows: int) -> None:
    lengths = lengths_of(rows)
    plan = Plan(PlanSpec(rows, 7, batch_tokens=512), lengths)
    for epoch in (0, 3):
        batches = epoch_of(plan, epoch)
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(rows))
        assert all(len(batch) * lengths[batch].max() <= 512 for batch in batches)


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    plan = Plan(PlanSpec(5, 0, batch_tokens=100), np.array([10, 10, 500, 10, 10], dtype=np.int32))
    assert sorted(map(len, epoch_of(plan, 0))) == [1, 4]


def test_one_million_rows_through_many_windows() -> None:
    plan = Plan(PlanSpec(1_000_003, 11, "group_by_length", 48), lengths_of(1_000_003))
    seen = np.concatenate(epoch_of(plan, 1))
    assert len(seen) == 1_000_003 and np.array_equal(np.bincount(seen), np.ones(1_000_003))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = lengths_of(5000)
    first, again = (epoch_of(Plan(PlanSpec(5000, 7, "group_by_length", 16), lengths), 2) for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    other_seed = epoch_of(Plan(PlanSpec(5000, 8, "group_by_length", 16), lengths), 2)
    other_epoch = epoch_of(Plan(PlanSpec(5000, 7, "group_by_length", 16), lengths), 3)
    for other in (other_seed, other_epoch):
        assert sum(np.array_equal(left, right) for left, right in zip(first, other, strict=True)) < 3


def test_any_batch_is_found_alone_as_in_its_epoch() -> None:
    lengths = lengths_of(70_000)
    for spec in (PlanSpec(70_000, 7, "group_by_length", 16), PlanSpec(70_000, 7, batch_tokens=2048)):
        batches = epoch_of(Plan(spec, lengths), 2)
        for index in (0, len(batches) // 2, len(batches) - 1):
            assert np.array_equal(Plan(spec, lengths).batch(2, index), batches[index])


def test_shuffling_mixes_blocks_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file sorted by label must not give batches of one label: rows of a batch come from all over the data."""
    monkeypatch.setattr(plan_module, "WINDOW_ROWS", 4096)
    plan = Plan(PlanSpec(40_000, 7, "random", 64))
    spread = [np.ptp(batch) for batch in epoch_of(plan, 0)[:-1]]
    assert np.median(spread) > 30_000


def test_length_bucketing_leaves_under_three_percent_padding() -> None:
    lengths = lengths_of(200_000)

    def padding(strategy: str) -> float:
        batches = epoch_of(Plan(PlanSpec(200_000, 7, strategy, 16), lengths), 0)
        return 1 - lengths.sum() / sum(len(batch) * int(lengths[batch].max()) for batch in batches)

    assert padding("group_by_length") < 0.03 < 0.3 < padding("random")


def test_drop_last_drops_the_remainder_and_counts_it() -> None:
    plan = Plan(PlanSpec(1003, 7, "random", 16, drop_last=True))
    assert plan.steps_per_epoch == 62 and plan.dropped_rows == 11
    assert all(len(batch) == 16 for batch in epoch_of(plan, 0))


def test_steps_run_through_the_epochs() -> None:
    plan = Plan(PlanSpec(100, 7, "random", 16))
    epoch, index, rows = plan.at(7 * 3 + 2)
    assert (epoch, index) == (3, 2) and np.array_equal(rows, plan.batch(3, 2))


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 1), (2, 1), (3, 1), (2, 2), (3, 4)])
def test_micro_batches_are_slices_of_the_global_batch(workers: int, accumulation: int) -> None:
    rows = np.random.default_rng(0).permutation(16)
    parts = split_batch(rows, workers, accumulation)
    assert np.array_equal(np.concatenate([part for micro in parts for part in micro]), rows)
    sizes = [len(part) for micro in parts for part in micro]
    assert len(sizes) == workers * accumulation and max(sizes) - min(sizes) <= 1


_HUGE = """
import json, sys, time
import numpy as np
from raytrain_nlp.data.plan import Plan, PlanSpec
lengths = np.load(sys.argv[1], mmap_mode="r")
started = time.process_time()
rows = Plan(PlanSpec(len(lengths), 1, "group_by_length", 16), lengths).batch(3, 5_000_000)
seconds = time.process_time() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would count the parent's
print(json.dumps({"rows": rows.tolist(), "seconds": seconds, "mb": peak / 1024}))
"""  # noqa: E501


def test_batch_five_million_of_a_hundred_million_rows(tmp_path: Path) -> None:
    """Found in a new process in under two seconds of its time after the lengths are opened, in under a gigabyte."""
    lengths = np.lib.format.open_memmap(tmp_path / "lengths.npy", mode="w+", dtype=np.int32, shape=(100_000_000,))
    lengths.reshape(100, -1)[:] = np.random.default_rng(0).integers(
        3, 128, 1_000_000, dtype=np.int32
    )  # drawing them all takes longer than the test
    output = subprocess.run(
        [sys.executable, "-c", _HUGE, tmp_path / "lengths.npy"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(output)
    assert len(set(found["rows"])) == 16 and max(found["rows"]) < 100_000_000
    assert found["seconds"] < 2 and found["mb"] < 1024
    assert np.ptp(lengths[found["rows"]]) <= 2  # bucketed
    (tmp_path / "lengths.npy").unlink()
