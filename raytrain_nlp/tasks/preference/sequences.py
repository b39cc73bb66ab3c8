"""Rows of several sequences: kept side by side, each filled up to the longest of its row, as in
`tasks/multiple_choice.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain_nlp.tasks.base import Columns, attention_mask, pad

SIZES = "sequence_lengths"
"""Tokens of each sequence of a row."""
PROMPT = "prompt_length"
"""Tokens at the beginning of all sequences of a row that are not learned."""


def join_sequences(rows: list[list[list[int]]], filler: int) -> Columns:
    """`input_ids` and `SIZES` of rows of sequences."""
    columns: Columns = {"input_ids": [], SIZES: []}
    for sequences in rows:
        sizes = [len(ids) for ids in sequences]
        columns[SIZES].append(sizes)
        columns["input_ids"].append([t for ids in sequences for t in (*ids, *[filler] * (max(sizes) - len(ids)))])
    return columns


def stack_sequences(columns: Columns, pad_token_id: int) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask` [rows, sequences, longest], padded on the right; `completion_mask` where rows
    have a `PROMPT`: 1 for tokens that are learned.
    """
    sizes = np.array([list(row) for row in columns[SIZES]])
    count = sizes.shape[1]
    parts = [
        part[:size]
        for row, lengths in zip(columns["input_ids"], sizes, strict=True)
        for part, size in zip(np.asarray(row).reshape(count, -1), lengths, strict=True)
    ]
    shape = (len(sizes), count, -1)
    batch = {
        "input_ids": pad(parts, pad_token_id, "right").reshape(shape),
        "attention_mask": attention_mask(parts, "right").reshape(shape),
    }
    if PROMPT in columns:
        places: np.ndarray = np.arange(batch["input_ids"].shape[-1])
        learned = places >= np.array(columns[PROMPT], dtype=np.int64)[:, None, None]
        batch["completion_mask"] = (learned & (batch["attention_mask"] == 1)).astype(np.int8)
    return batch


def common_start(first: list[int], second: list[int]) -> int:
    """Number of tokens at the beginning that two sequences have in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def shortened(sequences: list[list[int]], length: int | None) -> list[list[int]]:
    """The first `length` tokens of each; None: all."""
    return [ids[:length] for ids in sequences]


def longest(rows: list[Any]) -> list[int]:
    """Tokens of the longest sequence of each row."""
    return [max(len(ids) for ids in sequences) for sequences in rows]
