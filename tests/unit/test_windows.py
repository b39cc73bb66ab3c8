"""Data in windows: each row once an epoch, the same batches at any number of workers and whenever windows were
prepared.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.language import CausalLm
from raytrain_nlp.data import windows
from raytrain_nlp.data.plan import PlanSpec
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.split import SplitSpec
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.data.windows import WindowedSpec, WindowedSplit, split_windows
from raytrain_nlp.errors import FeedError, InputError
from raytrain_nlp.modeling.tokenizer import load_tokenizer, train_tokenizer
from raytrain_nlp.planning.window_prefetch import WindowPreparer
from raytrain_nlp.tasks.base import CollateContext, Lengths

ROWS = 300
TEXTS = [f"row {number} has {'many ' * (number % 7)}words" for number in range(ROWS)]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(
        TEXTS, TokenizerTraining(vocab_size=300), "decoder", "key", tmp_path_factory.mktemp("tokenizers"), None
    )


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "FIRST_BYTES", 400)
    monkeypatch.setattr(windows, "PIECE_BYTES", 1000)
    monkeypatch.setattr(windows, "LARGEST_BYTES", 3000)


def write(folder: Path, lines: list[str]) -> list[Any]:
    """The lines in two files, of unequal size."""
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("".join(lines[:220]))
    (folder / "b.jsonl").write_text("".join(lines[220:]))
    return find_files([str(folder)], "data.train")


def json_lines() -> list[str]:
    return [json.dumps({"text": text}) + "\n" for text in TEXTS]


def preparer(
    folder: Path,
    files: list[Any],
    tokenizer_dir: Path,
    packing: str = "none",
    max_bad_rows: float = 0.01,
    steps: int = 10**6,
) -> WindowPreparer:
    task = CausalLm(type="causal-lm", packing=packing)
    tokenizer = load_tokenizer(str(tokenizer_dir))
    context = CollateContext(tokenizer.pad_token_id, 0, "right", ["input_ids", "attention_mask"], [])
    from raytrain_nlp.tasks import build_task

    split = SplitSpec("", None, None, build_task(task).packing(16), PlanSpec(0, 5, "random", 8), None, task, context)
    cut = split_windows(files)
    spec = WindowedSpec(
        str(folder / "windows"), len(cut), split, str(folder / "failed.json"), str(folder / "wanted.json")
    )
    prepare = PrepareSpec(task, str(tokenizer_dir), "key", Lengths(None if packing != "none" else 16), max_bad_rows)
    return WindowPreparer(spec, cut, prepare, steps)


def prepare_all(made: WindowPreparer, folder: Path) -> WindowedSplit:
    made.prepare_first(map)
    with made.running(lambda: 10**6, folder / "quarantine.jsonl", lambda stop: nullcontext(map)):
        split = WindowedSplit(made.spec)
        split.find(10**6)  # waits until all windows are there
    return split


def rows_of(split: WindowedSplit, steps: range, world_size: int = 1) -> list[list[int]]:
    """Row ids of each global batch, put together from all ranks."""
    parts = [
        [split.micro_batches(step, world_size, rank, 1)[0].rows.tolist() for rank in range(world_size)]
        for step in steps
    ]
    return [sum(part, []) for part in parts]


def test_windows_are_the_files_in_order_and_grow(tmp_path: Path) -> None:
    files = write(tmp_path, json_lines())
    cut = split_windows(files)
    read = b"".join(Path(piece.path).read_bytes()[piece.start : piece.end] for window in cut for piece in window)
    assert read == b"".join(Path(file.path).read_bytes() for file in files)
    sizes = [sum(piece.end - piece.start for piece in window) for window in cut]
    assert 200 <= sizes[0] <= 800 and sizes[2] > 2 * sizes[0] and max(sizes) < 3800
    assert all(piece.end - piece.start <= 1000 for window in cut for piece in window)


def test_each_epoch_has_each_row_once_in_another_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    split = prepare_all(preparer(tmp_path, write(tmp_path / "data", json_lines()), tokenizer_dir), tmp_path)
    steps = split.steps_known()
    epochs = [rows_of(split, range(epoch * steps, (epoch + 1) * steps)) for epoch in range(3)]
    for epoch in epochs:
        assert Counter(row for batch in epoch for row in batch) == Counter(range(ROWS))
        assert max(map(len, epoch)) == 8
    assert epochs[0] != epochs[1] != epochs[2]
    # the row ids are those of the data in their order: their tokens say so
    tokenizer = load_tokenizer(str(tokenizer_dir))
    batch = split.micro_batches(steps // 2, 1, 0, 1)[0]
    for row, tokens in zip(batch.rows, batch.tensors["input_ids"], strict=True):
        assert f"row {row} " in tokenizer.decode(tokens)
    assert split.locate(250).endswith("b.jsonl:31")


def test_batches_do_not_depend_on_workers_or_on_when_a_window_was_made(tmp_path: Path, tokenizer_dir: Path) -> None:
    files = write(tmp_path / "data", json_lines())
    early = preparer(tmp_path, files, tokenizer_dir)
    early.prepare_first(map)
    first = WindowedSplit(early.spec)
    few = first.steps_known()
    before = rows_of(first, range(few))
    assert 0 < few < 5
    split = prepare_all(early, tmp_path)
    assert rows_of(split, range(few)) == before
    assert rows_of(split, range(20), 3) == rows_of(split, range(20), 1)
    late = WindowedSplit(early.spec)  # a process that starts in the middle
    assert rows_of(late, range(30, 33)) == rows_of(split, range(30, 33))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_packed_windows_hold_every_token_once(tmp_path: Path, tokenizer_dir: Path, packing: str) -> None:
    split = prepare_all(preparer(tmp_path, write(tmp_path / "data", json_lines()), tokenizer_dir, packing), tmp_path)
    tokenizer, found = load_tokenizer(str(tokenizer_dir)), Counter()
    for step in range(split.steps_known()):
        tokens = split.micro_batches(step, 1, 0, 1)[0].tensors["input_ids"]
        found.update(tokens[tokens != tokenizer.pad_token_id].tolist())
    end = [tokenizer.eos_token_id] if packing == "best_fit" else []  # whole documents are ended
    wanted = Counter(token for text in TEXTS for token in tokenizer(text)["input_ids"] + end)
    missing = sum((wanted - found).values())
    assert (
        not found - wanted and missing <= split.spec.count
    )  # at most the one token that may be left at the end of each window's stream


def test_nothing_is_prepared_beyond_what_the_steps_need(tmp_path: Path, tokenizer_dir: Path) -> None:
    made = preparer(tmp_path, write(tmp_path / "data", json_lines()), tokenizer_dir, steps=4)
    made.prepare_first(map)
    with made.running(lambda: 0, tmp_path / "quarantine.jsonl", lambda stop: nullcontext(map)):
        WindowedSplit(made.spec).find(3)
    assert made.counts["tokenized_rows"] == made.counts["rows"] < ROWS / 3
    again = preparer(tmp_path, find_files([str(tmp_path / "data")], "data.train"), tokenizer_dir, steps=4)
    again.prepare_first(map)
    assert again.counts["rows"] > 0 == again.counts["tokenized_rows"]


def test_a_rank_that_waits_is_served_wherever_training_stands(tmp_path: Path, tokenizer_dir: Path) -> None:
    made = preparer(tmp_path, write(tmp_path / "data", json_lines()), tokenizer_dir)
    made.prepare_first(map)
    with made.running(lambda: 0, tmp_path / "quarantine.jsonl", lambda stop: nullcontext(map)):
        split = WindowedSplit(made.spec)
        split.find(10**6)
    assert made.counts["rows"] == ROWS


def test_bad_rows_keep_their_line_in_the_file(tmp_path: Path, tokenizer_dir: Path) -> None:
    lines = json_lines()
    for number in (3, 150, 219, 299):
        lines[number] = '{"text": null}\n'
    prepare_all(preparer(tmp_path, write(tmp_path / "data", lines), tokenizer_dir, max_bad_rows=4), tmp_path)
    told = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(Path(bad["source"]).name, bad["line"]) for bad in told] == [
        ("a.jsonl", 4),
        ("a.jsonl", 151),
        ("a.jsonl", 220),
        ("b.jsonl", 80),
    ]
    assert all(bad["split"] == "train" and bad["reason"] == "field 'text' is null" for bad in told)


def test_too_many_bad_rows_stop_the_feed_and_the_driver(tmp_path: Path, tokenizer_dir: Path) -> None:
    lines = [line if number < 100 or number % 2 else "no json\n" for number, line in enumerate(json_lines())]
    made = preparer(tmp_path, write(tmp_path / "data", lines), tokenizer_dir, max_bad_rows=20)
    made.prepare_first(map)
    line = (
        r"^data\.train: \d+ of \d+ rows so far are bad, more than data\.max_bad_rows \(20\); one of them: "
        r".*a\.jsonl:\d+: not JSON"
    )
    running = made.running(lambda: 10**6, tmp_path / "quarantine.jsonl", lambda stop: nullcontext(map))
    with pytest.raises(InputError, match=line), running, pytest.raises(FeedError, match="rows so far are bad"):
        WindowedSplit(made.spec).find(10**6)


def test_no_row_at_all_is_told(tmp_path: Path, tokenizer_dir: Path) -> None:
    files = write(tmp_path / "data", ["\n"] * 300)
    with pytest.raises(InputError, match="data.train: has no rows"):
        preparer(tmp_path, files, tokenizer_dir).prepare_first(map)


def test_seeds_of_windows_differ(tmp_path: Path, tokenizer_dir: Path) -> None:
    made = preparer(tmp_path, write(tmp_path / "data", json_lines()), tokenizer_dir)
    prepare_all(made, tmp_path)
    specs = [windows.find_window(made.spec, number) for number in range(made.spec.count)]
    assert len({spec.plan.seed for spec in specs}) == len(specs)
    assert np.all([replace(spec.plan, seed=0, num_rows=0) == PlanSpec(0, 0, "random", 8) for spec in specs])
