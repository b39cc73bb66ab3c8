"""Packing against slow and plain truths: a joined list cut into blocks, and documents that no block splits, loses or
lets meet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raytrain_nlp.data import packing
from raytrain_nlp.data.packing import Blocks, build_blocks
from raytrain_nlp.data.shards import LENGTHS, MANIFEST, TokenStore, write_shard
from raytrain_nlp.paths import write_json
from raytrain_nlp.tasks.base import Packing


def store_of(folder: Path, documents: list[list[int]], per_shard: int = 7) -> TokenStore:
    """A store of the documents as `prepare` writes it."""
    folder.mkdir()
    shards = []
    for number, start in enumerate(range(0, len(documents), per_shard)):
        part = documents[start : start + per_shard]
        columns = {
            "line": list(range(len(part))),
            "input_ids": part,
            "targets": [[token % 2 for token in row] for row in part],
        }
        write_shard(folder / f"{number}.arrow", columns)
        shards.append({"file": f"{number}.arrow", "rows": len(part), "source": "x", "first_line": start + 1})
    np.save(folder / LENGTHS, np.array([len(row) for row in documents], dtype=np.int32))
    write_json(folder / MANIFEST, {"rows": len(documents), "tokens": sum(map(len, documents)), "shards": shards})
    return TokenStore(folder)


def documents_of(seed: int, count: int, longest: int) -> list[list[int]]:
    """Documents whose tokens are all different numbers, so that each can be found again; some are empty."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest, size=count)
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)]


@pytest.mark.parametrize(("count", "longest", "size"), [(50, 9, 8), (50, 40, 8), (3, 5, 64), (100, 30, 1000)])
def test_concat_is_the_joined_stream_cut_into_blocks(tmp_path: Path, count: int, longest: int, size: int) -> None:
    documents = documents_of(1, count, longest)
    stream = [token for row in documents for token in row]
    truth = [stream[i : i + size] for i in range(0, len(stream), size)]
    left_out = len(truth[-1]) if len(truth[-1]) < 2 else 0
    truth = [block for block in truth if len(block) > 1]
    store, kind = store_of(tmp_path / "store", documents), Packing("concat", size)
    folder, left = build_blocks(store, kind, [count])
    blocks = Blocks(folder, kind)
    assert left == left_out
    assert blocks.lengths.tolist() == [len(block) for block in truth]
    order = np.random.default_rng(0).permutation(len(blocks))
    fetched = blocks.fetch(store, order)
    assert [row.tolist() for row in fetched["input_ids"]] == [truth[i] for i in order]
    assert [row.tolist() for row in fetched["targets"]] == [[token % 2 for token in truth[i]] for i in order]


@pytest.mark.parametrize(("count", "longest", "size"), [(200, 30, 32), (60, 100, 16), (5, 4, 100)])
def test_best_fit_keeps_documents_whole_and_apart(tmp_path: Path, count: int, longest: int, size: int) -> None:
    """Every token is in one block, once; a document that fits is in one piece; positions start again where another
    begins.
    """
    documents = documents_of(2, count, longest)
    store, kind = store_of(tmp_path / "store", documents), Packing("best_fit", size)
    folder, left = build_blocks(store, kind, [count])
    blocks = Blocks(folder, kind)
    fetched = blocks.fetch(store, np.arange(len(blocks)))
    tokens = [token for row in fetched["input_ids"] for token in row.tolist()]
    assert sorted(tokens) == list(range(sum(map(len, documents)) - left)) or left
    assert len(set(tokens)) == len(tokens) == sum(map(len, documents)) - left
    assert max(blocks.lengths) <= size
    starts = {row[0] for row in documents if row}
    for ids, positions in zip(fetched["input_ids"], fetched["position_ids"], strict=True):
        for i, (token, position) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
            begins = position == 0
            assert begins or (ids[i - 1] == token - 1 and positions[i - 1] == position - 1)
            assert (
                not begins
                or token in starts
                or any(
                    token == row[0] + cut for row in documents if len(row) > size for cut in range(0, len(row), size)
                )
            )


def test_best_fit_wastes_little(tmp_path: Path) -> None:
    """Lengths as text has them: less than 1 % of the blocks' room stays empty; one document a block would waste
    most.
    """
    random = np.random.default_rng(3)
    lengths = np.minimum(random.lognormal(4, 1, size=3000).astype(int) + 1, 400)
    documents = [list(range(length)) for length in lengths.tolist()]
    store, kind = store_of(tmp_path / "store", documents, 1000), Packing("best_fit", 512)
    folder, left = build_blocks(store, kind, [3000])
    blocks = Blocks(folder, kind)
    assert left == 0
    assert 1 - blocks.lengths.sum() / (len(blocks) * 512) < 0.01


def test_windows_change_nothing_for_concat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are written a window of rows at a time, and say the same."""
    documents = documents_of(4, 100, 20)
    kind = Packing("concat", 16)
    whole, _ = build_blocks(store_of(tmp_path / "a", documents), kind, [100])
    monkeypatch.setattr(packing, "WINDOW_ROWS", 7)
    parts, _ = build_blocks(store_of(tmp_path / "b", documents), kind, [100])
    assert (whole / "ends.npy").read_bytes() == (parts / "ends.npy").read_bytes()


def test_first_rows_only(tmp_path: Path) -> None:
    """Blocks of the first rows do not reach into the others."""
    documents = documents_of(5, 40, 12)
    store, kind = store_of(tmp_path / "store", documents), Packing("concat", 7)
    folder, _ = build_blocks(store, kind, [11])
    blocks = Blocks(folder, kind)
    assert (
        blocks.fetch(store, np.array([len(blocks) - 1]))["input_ids"][0].tolist()[-1]
        == sum(map(len, documents[:11])) - 1
    )
