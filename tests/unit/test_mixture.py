"""Several sources with shares: which rows the plan takes, how often, and what a job must say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.config.mixture import DataSource
from raytrain_nlp.data.mixture import Mixture, MixturePlan, apportion, open_plan
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.plan import Plan, PlanSpec, split_batch
from raytrain_nlp.data.shards import TokenStore, write_shard
from raytrain_nlp.data.shares import build_mixture, find_ends, tell_mixture
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning.inputs import find_job_files
from raytrain_nlp.tasks.base import Packing

ROWS = (600_000, 300_000, 100_000)
ENDS = tuple(itertools.accumulate(ROWS))
LENGTHS = np.random.default_rng(0).integers(3, 128, ENDS[-1]).astype(np.int32)


def mixture_of(weights: list[float], rows: tuple[int, ...] = ROWS, total: int | None = None) -> Mixture:
    ends = tuple(itertools.accumulate(rows))
    names = tuple("abcdefgh"[: len(rows)])
    return Mixture(names, ends, (tuple(apportion(weights, total or ends[-1])),))


def plan_of(mixture: Mixture, strategy: str = "random", size: int = 32, **more: Any) -> MixturePlan:
    plan = open_plan(PlanSpec(mixture.ends[-1], 7, strategy, size, mixture=mixture, **more), LENGTHS)
    assert isinstance(plan, MixturePlan)
    return plan


def sources_of(mixture: Mixture, rows: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(mixture.ends, rows, side="right"), minlength=len(mixture.ends))


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_shares_of_a_million_rows_and_how_often_each_row_is_seen(strategy: str) -> None:
    """Weights 5:3:2: shares to a row in each epoch; of every source each row once in each of its own epochs."""
    mixture = mixture_of([5, 3, 2])
    plan = plan_of(mixture, strategy)
    epochs = [np.concatenate([plan.batch(epoch, i) for i in range(plan.steps_per_epoch)]) for epoch in range(2)]
    for rows in epochs:
        assert sources_of(mixture, rows).tolist() == [500_000, 300_000, 200_000]
    seen = np.bincount(np.concatenate(epochs), minlength=ENDS[-1])
    of_a, of_b, of_c = np.split(seen, ENDS[:-1])
    assert set(of_a) == {1, 2} and of_a.sum() == 1_000_000
    assert set(of_b) == {2} and set(of_c) == {4}
    assert set(np.bincount(epochs[0][epochs[0] >= ENDS[1]] - ENDS[1], minlength=ROWS[2])) == {2}


def test_a_batch_has_the_shares_to_a_few_rows() -> None:
    mixture = mixture_of([5, 3, 2])
    plan = plan_of(mixture, size=40)
    counts = np.array([sources_of(mixture, plan.batch(0, i)) for i in range(0, plan.steps_per_epoch, 97)])
    assert (abs(counts - [20, 12, 8]) <= 4).all() and abs(counts.mean(axis=0) - [20, 12, 8]).max() < 0.1


def test_the_order_is_shuffled_within_sources_and_other_in_each_epoch() -> None:
    mixture = mixture_of([1, 1], (5000, 5000))
    plan = plan_of(mixture, size=100)
    first, second = (np.concatenate([plan.batch(epoch, i) for i in range(100)]) for epoch in range(2))
    for rows in (first, second):
        assert sorted(rows) == list(range(10_000))
        assert np.corrcoef(rows[rows < 5000], np.arange(5000))[0, 1] < 0.1
    assert (first == second).mean() < 0.01


def test_another_source_changes_nothing_of_the_order_of_the_others() -> None:
    alone = plan_of(mixture_of([1], (5000,)))
    beside = plan_of(mixture_of([1, 1], (5000, 3000)))
    rows = np.concatenate([beside.batch(epoch, i) for epoch in range(2) for i in range(beside.steps_per_epoch)])
    order = np.concatenate([alone.batch(0, i) for i in range(alone.steps_per_epoch)])
    assert set(rows[rows < 5000][:5000]) == set(order) == set(range(5000))


def test_the_shares_are_kept_at_every_place() -> None:
    """Among the first rows of an epoch, up to any window, each source has its share to a row or two."""
    mixture = mixture_of([0.7, 0.2, 0.0999, 0.0001], (70_000, 20_000, 100_000, 10_000))
    plan = plan_of(mixture, size=64)
    taken, done = np.zeros(4), 0
    for index in range(plan.steps_per_epoch):
        rows = plan.batch(0, index)
        taken, done = taken + sources_of(mixture, rows), done + len(rows)
        if (index + 1) % 1024 == 0:  # a window
            assert (abs(taken - np.array([0.7, 0.2, 0.0999, 0.0001]) * done) <= 2).all()


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_rest_of_an_epoch(drop_last: bool) -> None:
    plan = plan_of(mixture_of([2, 1], (100, 53)), size=16, drop_last=drop_last)
    sizes = [len(plan.batch(0, i)) for i in range(plan.steps_per_epoch)]
    assert sizes == [16] * 9 + ([] if drop_last else [9]) and plan.dropped_rows == (9 if drop_last else 0)


def test_a_curriculum_changes_shares_at_its_steps() -> None:
    mixture = Mixture(("a", "b"), (100, 300), ((16 * 10, 0), (16 * 2, 16 * 2), (0, 16 * 7)))
    plan = plan_of(mixture, size=16)
    assert plan.steps_per_epoch == 21
    counts = [sources_of(mixture, plan.batch(0, i)).tolist() for i in range(21)]
    assert counts[:10] == [[16, 0]] * 10 and counts[14:] == [[0, 16]] * 7
    assert sum(count[0] for count in counts[10:14]) == 32
    of_b = np.concatenate([plan.batch(0, i) for i in range(21)])
    assert set(np.bincount(of_b[of_b >= 100] - 100, minlength=200)) == {0, 1}  # 144 of 200, none twice


def test_batches_are_found_alone_and_soon_and_are_cut_alike_for_any_workers() -> None:
    mixture = mixture_of([5, 3, 2])
    walked = plan_of(mixture, "group_by_length")
    for index in (0, 2047, 2048, 31_249):
        batch = walked.batch(3, index)
        assert np.array_equal(plan_of(mixture, "group_by_length").batch(3, index), batch)
        for workers in (1, 2, 3, 8):
            parts = [part for micro in split_batch(batch, workers, 2) for part in micro]
            assert np.array_equal(np.concatenate(parts), batch)
    assert walked.at(5_000_000)[:2] == (160, 0)


def test_sequential_takes_rows_of_each_source_as_they_stand() -> None:
    mixture = mixture_of([1, 3], (10, 30))
    rows = np.concatenate([plan_of(mixture, "sequential", 8).batch(0, i) for i in range(5)])
    assert rows[rows < 10].tolist() == list(range(10)) and rows[rows >= 10].tolist() == list(range(10, 40))
    assert sources_of(mixture, rows[:8]).tolist() == [2, 6]


@pytest.mark.parametrize(
    ("weights", "total", "counts"),
    [([5, 3, 2], 10, [5, 3, 2]), ([1, 1, 1], 10, [4, 3, 3]), ([0.1, 0.2], 3, [1, 2]), ([0, 1], 7, [0, 7])],
)
def test_apportioned(weights: list[float], total: int, counts: list[int]) -> None:
    assert apportion(weights, total) == counts


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_a_block_is_of_one_source(tmp_path: Path, kind: str) -> None:
    """Packed apart, and the same blocks as of each source alone."""
    lengths = np.random.default_rng(1).integers(1, 30, 100).tolist()
    starts = np.cumsum([0, *lengths])
    tokens = [list(range(start, start + length)) for start, length in zip(starts[:-1], lengths, strict=True)]

    def packed(name: str, rows: list[list[int]], ends: list[int]) -> tuple[list[list[int]], Blocks]:
        folder = tmp_path / name
        folder.mkdir()
        write_shard(folder / "shard-0.arrow", {"input_ids": rows, "line": list(range(len(rows)))})
        shards = [{"file": "shard-0.arrow", "rows": len(rows), "source": "f", "first_line": 1}]
        np.save(folder / "lengths.npy", np.array([len(row) for row in rows], dtype=np.int32))
        (folder / "manifest.json").write_text(json.dumps({"rows": len(rows), "shards": shards}))
        store, packing = TokenStore(folder), Packing(kind, 16)
        blocks = Blocks(build_blocks(store, packing, ends)[0], packing)
        return [row.tolist() for row in blocks.fetch(store, np.arange(len(blocks)))["input_ids"]], blocks

    together, blocks = packed("all", tokens, [37, 38, 100])
    parts = [packed(f"part{i}", tokens[a:b], [b - a])[0] for i, (a, b) in enumerate([(0, 37), (37, 38), (38, 100)])]
    assert together == [block for part in parts for block in part]
    assert blocks.ends.tolist() == np.cumsum([len(part) for part in parts]).tolist()


# From a job


def job_of(tmp_path: Path, sources: list[Any], **more: Any) -> dict[str, Any]:
    mixture, training = more.pop("mixture", {}), more.pop("training", {})
    return {
        "task": {"type": "causal-lm"},
        "model": {"config": {"model_type": "gpt2"}, "tokenizer": "train"},
        "storage_path": str(tmp_path / "runs"),
        "data": {"train": sources, "mixture": mixture, **more},
        "training": {"per_device_train_batch_size": 4, **training},
    }


def stretches_of(tmp_path: Path, sources: list[Any], rows: list[int], **more: Any) -> list[list[int]]:
    job = load_job(job_of(tmp_path, sources, **more))
    names = [source.label for source in job.data.train_sources()]
    return [list(part) for part in build_mixture(job, names, list(itertools.accumulate(rows))).stretches]


def test_amounts_of_a_job(tmp_path: Path) -> None:
    paths = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]

    def with_(key: str, *values: float) -> list[Any]:
        return [{**path, key: value} for path, value in zip(paths, values, strict=True)]

    assert stretches_of(tmp_path, paths, [900, 100]) == [[900, 100]]
    assert stretches_of(tmp_path, with_("weight", 3, 1), [900, 100]) == [[750, 250]]
    assert stretches_of(tmp_path, with_("rows", 50, 20), [900, 100]) == [[50, 20]]
    assert stretches_of(tmp_path, with_("epochs", 0.5, 3), [900, 100]) == [[450, 300]]
    assert stretches_of(tmp_path, paths, [900, 100], mixture={"temperature": 1}) == [[900, 100]]
    assert stretches_of(tmp_path, paths, [900, 100], mixture={"temperature": 2}) == [[750, 250]]
    assert stretches_of(tmp_path, paths, [900, 100], mixture={"weights": {"a": 1, "b": 4}}) == [[200, 800]]
    stages = [{"until_step": 10, "weights": {"a": 1}}, {"weights": {"a": 1, "b": 3}}]
    found = stretches_of(tmp_path, paths, [9, 9], mixture={"curriculum": stages}, training={"max_steps": 30})
    assert found == [[80, 0], [40, 120]]  # two workers of 4 rows


def test_names_of_sources() -> None:
    paths = ("x/web.jsonl.gz", ["de/*.txt"], "s3://b/folder/", "hf://u/d:train", "*.txt")
    names = [DataSource(path=path).label for path in paths]
    assert names == ["web", "de", "folder", "d_train", "source"] and DataSource(path="a", name="n").label == "n"


@pytest.mark.parametrize(
    ("sources", "more", "what"),
    [
        ([{"path": "a"}, {"path": "a"}], {}, "two sources named a"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], {}, "no weight for b"),
        ([{"path": "a", "weight": 1}, {"path": "b", "rows": 1}], {}, "weight and rows"),
        ([{"path": "a", "weight": 0}], {}, "data.train.0.weight: should be greater than 0"),
        ([{"path": "a", "wieght": 1}], {}, "data.train.0.wieght: unknown key. Did you mean 'weight'?"),
        ([{"weight": 1}], {}, "data.train.0.path: is missing"),
        ([{"path": []}], {}, "data.train.0.path: is empty"),
        ([{"path": "a"}, "b"], {}, "a source without its keys"),
        ([{"path": "a"}], {"batch_tokens": 100}, "data.batch_tokens: is not for several sources"),
        ([{"path": "a"}], {"max_train_rows": 100}, "data.max_train_rows: is not for several sources"),
        (["a"], {"mixture": {"temperature": 2}}, "data.mixture: is for several sources"),
        ([{"path": "a"}], {"mixture": {"weights": {"b": 1}}}, "no source is named 'b'"),
        ([{"path": "a"}], {"mixture": {"curriculum": [{"weights": {"a": 1}}]}}, "needs max_steps"),
        (
            [{"path": "a"}],
            {"mixture": {"curriculum": [{"weights": {"a": 1}}, {"weights": {"a": 1}}]}},
            "data.mixture.curriculum.0.until_step: is missing",
        ),
    ],
)
def test_what_a_job_may_not_say(tmp_path: Path, sources: list[Any], more: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as raised:
        load_job({**job_of(tmp_path, sources, **more), "training": {}})
    assert what in str(raised.value)


def test_a_weight_is_set_from_the_command_line(tmp_path: Path) -> None:
    job = job_of(tmp_path, [{"path": "a", "weight": 1}, {"path": "b", "weight": 1}])
    changed = load_job(job, ["data.train.1.weight=4"])
    assert [source.weight for source in changed.data.train_sources()] == [1, 4]
    assert job["data"]["train"][1]["weight"] == 1
    with pytest.raises(InputError, match="there is no '2' in a list of 2"):
        load_job(job, ["data.train.2.weight=4"])


def test_a_file_of_two_sources_is_refused_and_ends_follow_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("some text\n")
    job = job_of(tmp_path, [{"path": f"{tmp_path}/a.txt"}, {"path": f"{tmp_path}/*.txt", "name": "all"}])
    with pytest.raises(InputError, match=r"a\.txt in two sources \(a and all\)"):
        find_job_files(load_job(job), tmp_path / "runs")
    job["data"]["train"][1] = {"path": f"{tmp_path}/b.txt"}
    files = find_job_files(load_job(job), tmp_path / "runs")
    assert list(files.sources) == ["a", "b"]

    class Store:
        manifest = {"shards": [{"source": path, "rows": n} for path, n in (*((f.path, 3) for f in files.train),)]}

    assert find_ends(Store(), files.sources) == [3, 6]  # type: ignore[arg-type]
    Store.manifest["shards"][1]["rows"] = 0
    with pytest.raises(InputError, match="no row for b"):
        find_ends(Store(), files.sources)  # type: ignore[arg-type]


def test_what_is_told_of_a_mixture() -> None:
    lines = list(tell_mixture(mixture_of([5, 3, 2]), 2))
    assert lines[0] == "data.train: a: 600,000 rows, 50.00% of what is trained on; each is seen 1.67 times."
    assert lines[2] == "data.train: c: 100,000 rows, 20.00% of what is trained on; each is seen 4.00 times."


def test_a_plan_without_mixture_is_as_it_was() -> None:
    assert type(open_plan(PlanSpec(10, 7, "random", 4))) is Plan
