"""Packing: the rows of a token store as blocks of `block_size` tokens. The plan then orders, batches and counts blocks
instead of rows.

concat      all rows are one stream of tokens, cut every `block_size` tokens; the last block may be shorter
best_fit    a block holds whole rows, which are placed longest first, each into the block where it leaves least room
            (best-fit decreasing; Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); rows longer than
            `block_size` are cut first

The sources of a mixture are packed one by one, so that every block belongs to one source. The files depend on the
lengths alone: they are written once into the folder of the tokens, are shared by all ranks, and are the same with any
number of workers. They are memory-mapped, and written by looking at one window of rows at a time.
"""

from __future__ import annotations

import bisect
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.storage import storage_of
from raytrain_nlp.tasks.base import Packing

WINDOW_ROWS = 65_536
_SECTIONS = "sections.npy"
_LEAST = 2
"""Tokens that a block needs for anything to be predicted in it."""


class Blocks:
    """The blocks of a token store, opened for reading.

    A block consists of segments `(row, start, stop)`, each a slice of a row's tokens. `lengths` holds the number of
    tokens of each block: int32 [blocks]. `ends` holds the number of blocks up to the end of each section, which is a
    source of a mixture or all rows: int64 [sections].

    Args:
        rows: ids of the rows that were packed, as given to `build_blocks`.
    """

    def __init__(self, folder: Path, packing: Packing, rows: np.ndarray | None = None):
        storage_of(folder).fetch_tree(folder)
        self.packing, self._rows = packing, rows
        if packing.kind == "concat":
            self._ends = np.load(folder / "ends.npy", mmap_mode="r")
            self._first_tokens = np.array([0, *(self._ends[row - 1] for row in _sections(folder, len(self._ends)))])
            full, rest = np.divmod(np.diff(self._first_tokens), packing.block_size)
            self.ends = np.cumsum(full + (rest >= _LEAST))
            self.lengths: np.ndarray = np.full(int(self.ends[-1]), packing.block_size, dtype=np.int32)
            self.lengths[self.ends[rest >= _LEAST] - 1] = rest[rest >= _LEAST]
        else:
            self._segments, self._starts, self.lengths = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("segments", "starts", "lengths")
            )
            self.ends = _sections(folder, len(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def segments(self, block: int) -> list[tuple[int, int, int]]:
        """The segments of a block in order, with row ids of the store."""
        found = self._slices(block)
        return found if self._rows is None else [(int(self._rows[row]), start, stop) for row, start, stop in found]

    def _slices(self, block: int) -> list[tuple[int, int, int]]:
        if self.packing.kind == "best_fit":
            return [
                (int(row), int(start), int(stop))
                for row, start, stop in self._segments[self._starts[block] : self._starts[block + 1]]
            ]
        section = int(np.searchsorted(self.ends, block, side="right"))
        inside = block - (int(self.ends[section - 1]) if section else 0)
        first = int(self._first_tokens[section]) + inside * self.packing.block_size
        last = first + int(self.lengths[block])
        found = []
        row = int(np.searchsorted(self._ends, first, side="right"))
        while first < last:
            begin, end = (int(self._ends[row - 1]) if row else 0), int(self._ends[row])
            if end > first:
                found.append((row, first - begin, min(end, last) - begin))
            first, row = max(end, first), row + 1
        return found

    def fetch(self, store: TokenStore, blocks: np.ndarray) -> dict[str, list[Any]]:
        """The token columns of blocks, in the format in which `TokenStore.fetch` returns those of rows. With best_fit
        there is a column `position_ids` too, whose values start at 0 in each document.
        """
        parts = [self.segments(int(block)) for block in blocks]
        rows = np.array([row for part in parts for row, _, _ in part], dtype=np.int64)
        columns = store.fetch(rows)
        flat = [segment for part in parts for segment in part]
        ends = np.cumsum([len(part) for part in parts])
        made = {}
        for name, values in columns.items():
            pieces = [value[start:stop] for value, (_, start, stop) in zip(values, flat, strict=True)]
            made[name] = [np.concatenate(pieces[end - len(part) : end]) for part, end in zip(parts, ends, strict=True)]
        if self.packing.kind == "best_fit":
            made["position_ids"] = [
                np.concatenate([np.arange(stop - start, dtype=np.int32) for _, start, stop in part]) for part in parts
            ]
        return made


def blocks_folder(tokens: Path, packing: Packing, sections: Sequence[int], rows: np.ndarray | None = None) -> Path:
    """The folder for the blocks of a token store; the arguments are those of `build_blocks`."""
    parts = f"-{zlib.crc32(repr(list(sections)).encode()):08x}" if len(sections) > 1 else ""
    chosen = "" if rows is None else f"-of-{zlib.crc32(np.ascontiguousarray(rows).tobytes()):08x}"
    return tokens / f"{packing.kind}-{packing.block_size}-{sections[-1]}{parts}{chosen}"


def build_blocks(
    store: TokenStore, packing: Packing, sections: Sequence[int], rows: np.ndarray | None = None
) -> tuple[Path, int]:
    """Write the files that `Blocks` reads, unless they exist.

    Args:
        sections: the position after the last row of each section, ascending. Rows after the last section are not used.
        rows: ids of the rows to pack, int64 [rows], in order; None: all rows of the store.

    Returns:
        The folder of the blocks, and the number of tokens that are in no block, because a block of one token has
            nothing to predict.
    """
    folder = blocks_folder(store.folder, packing, sections, rows)
    of_rows = store.lengths if rows is None else store.lengths[rows]
    if not folder.exists():
        staging = store.folder / f".{folder.name}-{os.getpid()}"
        staging.mkdir(exist_ok=True)
        (_write_ends if packing.kind == "concat" else _write_best_fit)(staging, of_rows, packing, sections)
        try:
            staging.rename(folder)
        except OSError:  # another driver has written the same meanwhile
            if not folder.exists():
                raise
    total = sum(int(part.sum(dtype=np.int64)) for _, part in _windows(of_rows, 0, sections[-1]))
    return folder, total - int(Blocks(folder, packing).lengths.sum(dtype=np.int64))


def _windows(lengths: np.ndarray, first: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(first, stop, WINDOW_ROWS):
        yield start, np.asarray(lengths[start : min(start + WINDOW_ROWS, stop)])


def _write_ends(folder: Path, of_rows: np.ndarray, packing: Packing, sections: Sequence[int]) -> None:
    ends = np.lib.format.open_memmap(folder / "ends.npy", mode="w+", dtype=np.int64, shape=(sections[-1],))
    total = 0
    for start, lengths in _windows(of_rows, 0, sections[-1]):
        ends[start : start + len(lengths)] = total + np.cumsum(lengths, dtype=np.int64)
        total += int(lengths.sum(dtype=np.int64))
    ends.flush()
    _save_sections(folder, sections)


def _write_best_fit(folder: Path, of_rows: np.ndarray, packing: Packing, sections: Sequence[int]) -> None:
    segments, counts, lengths, blocks = [], [], [], []
    for first, stop in itertools.pairwise([0, *sections]):
        for start, part in _windows(of_rows, first, stop):
            for block in _pack(part, start, packing.block_size):
                if sum(end - begin for _, begin, end in block) >= _LEAST:
                    segments.append(np.array(block, dtype=np.int64))
                    counts.append(len(block))
                    lengths.append(sum(end - begin for _, begin, end in block))
        blocks.append(len(counts))
    np.save(folder / "segments.npy", np.concatenate(segments) if segments else np.zeros((0, 3), dtype=np.int64))
    np.save(folder / "starts.npy", np.cumsum([0, *counts], dtype=np.int64))
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int32))
    _save_sections(folder, blocks)


def _save_sections(folder: Path, ends: Sequence[int]) -> None:
    if len(ends) > 1:
        np.save(folder / _SECTIONS, np.array(ends, dtype=np.int64))


def _sections(folder: Path, whole: int) -> np.ndarray:
    """Where sections end, counted in rows (concat) or blocks (best_fit): int64 [sections]. A single section has no
    file.
    """
    return np.load(folder / _SECTIONS) if (folder / _SECTIONS).exists() else np.array([whole], dtype=np.int64)


def _pack(lengths: np.ndarray, first_row: int, size: int) -> list[list[tuple[int, int, int]]]:
    """The segments of each block of one window of rows, by best-fit decreasing."""
    pieces = []
    for row, length in enumerate(lengths.tolist(), first_row):
        pieces += [(row, start, min(start + size, length)) for start in range(0, length, size)]
    pieces.sort(key=lambda piece: piece[1] - piece[2])  # longest first; stable, so that equal ones keep their order
    blocks: list[list[tuple[int, int, int]]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of `by_room` in ascending order
    for piece in pieces:
        length = piece[2] - piece[1]
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            blocks.append([])
            room, block = size, len(blocks) - 1
        else:
            room = rooms[place]
            block = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        blocks[block].append(piece)
        if left := room - length:
            if left not in by_room:
                bisect.insort(rooms, left)
            by_room.setdefault(left, []).append(block)
    return blocks
