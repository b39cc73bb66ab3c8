"""Rows that stand more than once: counted against a count by hand, left out on request, each named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.data.duplicates import Duplicates, count_duplicates, digest_rows, find_unique_rows
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.shards import TokenStore, write_shard
from raytrain_nlp.data.shares import find_ends
from raytrain_nlp.errors import InputError
from raytrain_nlp.tasks.base import Packing

TRAIN = [([1, 2], "a"), ([3], "b"), ([1, 2], "a"), ([1, 2], "b"), ([1], "a"), ([2, 1], "a"), ([4, 5], "a")]
"""Row 2 is a copy of row 0, row 3 contradicts it; rows 4 and 5 have nothing to do with them."""


def store_of(folder: Path, rows: list[tuple[list[int], str]], labelled: bool = True) -> TokenStore:
    folder.mkdir()
    half = len(rows) // 2
    shards = []
    for number, part in enumerate((rows[:half], rows[half:])):
        columns: dict[str, list[Any]] = {"input_ids": [tokens for tokens, _ in part], "line": list(range(len(part)))}
        if labelled:
            columns["token_type_ids"] = [[0] * len(tokens) for tokens, _ in part]
            columns["label"] = [label for _, label in part]
        write_shard(folder / f"shard-{number}.arrow", columns)
        shards.append(
            {"file": f"shard-{number}.arrow", "rows": len(part), "source": f"{number}.jsonl", "first_line": 1}
        )
    np.save(folder / "lengths.npy", np.array([len(tokens) for tokens, _ in rows], dtype=np.int32))
    (folder / "manifest.json").write_text(json.dumps({"rows": len(rows), "shards": shards}))
    return TokenStore(folder)


def test_counted(tmp_path: Path) -> None:
    train = store_of(tmp_path / "train", TRAIN)
    held = store_of(tmp_path / "held", [([4, 5], "b"), ([9], "a"), ([1, 2], "a"), ([1, 2], "a")])
    assert count_duplicates(train, {"validation": held}) == Duplicates(1, 1, {"validation": 3})
    assert count_duplicates(held, {}) == Duplicates(1, 0, {})
    assert digest_rows(train).shape == (7, 2) and digest_rows(TokenStore(train.folder)).shape == (7, 2)


def test_told() -> None:
    lines = list(Duplicates(1200, 3, {"validation": 2, "validation.b": 0}).lines())
    assert [line.partition(" rows")[0] for line in lines] == [
        "data.train: 1,200",
        "data.train: 3",
        "data.validation: 2",
    ]
    assert list(Duplicates(0, 0, {"validation": 0}).lines()) == []


def test_left_out_and_named(tmp_path: Path) -> None:
    train = store_of(tmp_path / "train", TRAIN)
    held = store_of(tmp_path / "held", [([4, 5], "b"), ([9], "a")])
    for _ in range(2):  # found again
        unique = find_unique_rows(train, {"validation": held})
        assert np.load(unique.file).tolist() == [0, 1, 3, 4, 5] and (unique.copies, unique.leaked) == (1, 1)
    told = [json.loads(line) for line in unique.left_out.read_text().splitlines()]
    assert [(row["source"], row["line"]) for row in told] == [("0.jsonl", 3), ("1.jsonl", 4)]
    assert told[0]["reason"] == "is a copy of a row before it" and "validation" in told[1]["reason"]
    assert np.load(find_unique_rows(train, {}).file).tolist() == [0, 1, 3, 4, 5, 6]
    assert find_ends(train, {"a": ["0.jsonl"], "b": ["1.jsonl"]}, np.load(unique.file)) == [2, 5]


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_blocks_of_the_rows_that_stay(tmp_path: Path, kind: str) -> None:
    store, packing = store_of(tmp_path / "train", TRAIN, labelled=False), Packing(kind, 4)
    rows = np.array([0, 1, 3, 4, 5])
    blocks = Blocks(build_blocks(store, packing, [5], rows)[0], packing, rows)
    alone = store_of(tmp_path / "alone", [TRAIN[row] for row in rows], labelled=False)
    truth = Blocks(build_blocks(alone, packing, [5])[0], packing)
    ours, theirs = (part.fetch(of, np.arange(len(part)))["input_ids"] for part, of in ((blocks, store), (truth, alone)))
    assert [row.tolist() for row in ours] == [row.tolist() for row in theirs]
    assert {row for block in range(len(blocks)) for row, _, _ in blocks.segments(block)} <= set(rows.tolist())
    whole = Blocks(build_blocks(store, packing, [7])[0], packing)
    assert int(whole.lengths.sum()) == 12


def test_not_for_streams() -> None:
    job = {"task": {"type": "causal-lm"}, "model": {"name_or_path": "x"}, "training": {"max_steps": 5}}
    with pytest.raises(InputError, match=r"data\.drop_duplicates: needs all rows"):
        load_job({**job, "data": {"train": "a", "streaming": True, "drop_duplicates": True}})
