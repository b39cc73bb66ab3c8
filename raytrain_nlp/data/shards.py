"""Token shards: memory-mappable Arrow files of one record batch each, with `lengths.npy` and a manifest, which is
written last.

    manifest.json   {"rows", "bad_rows", "labels", "shards": [{"file", "rows", "source", "first_line"}], ...}
    lengths.npy     int32, shape [rows]
    shard-*.arrow   input_ids (list of int32), labels of seq2seq tasks, further columns of tokens, line,
                    label (text, number or list of texts)

The rows of a store are the rows of the data in the order of the files, without bad ones. Where one row of the data
became several, these are next to each other.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.names import below
from raytrain_nlp.storage.untrusted import read_json_file

MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
_SMALL = ("token_type_ids", "targets", "words")
"""Columns whose values fit into int8."""


def write_shard(path: Path, columns: dict[str, list[Any]]) -> int:
    """Write one shard; token columns are lists of lists of integers. Returns the number of rows."""
    arrays = {}
    for name, values in columns.items():
        if name == "input_ids":
            arrays[name] = pa.array(values, type=pa.large_list(pa.int32()))
        elif values and name != "label" and isinstance(values[0], (list, np.ndarray)):
            arrays[name] = pa.array(values, type=pa.large_list(pa.int8() if name in _SMALL else pa.int32()))
        else:
            arrays[name] = pa.array(values)
    table = pa.table(arrays)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(table.num_rows, 1))
    return table.num_rows


class TokenStore:
    """Reads a complete folder of token shards. Each shard is opened when it is first needed."""

    def __init__(self, folder: str | Path):
        self.folder, self._storage = Path(folder), storage_of(folder)
        for name in (MANIFEST, LENGTHS):
            self._storage.fetch(self.folder / name)
        self.manifest: dict[str, Any] = read_json_file(self.folder / MANIFEST)
        self.lengths: np.ndarray = np.load(self.folder / LENGTHS, mmap_mode="r")
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self.manifest["shards"])])
        self._shards: dict[int, dict[str, Any]] = {}

    @property
    def num_rows(self) -> int:
        """Number of rows here; a row of the data may have become several."""
        return self.manifest["rows"]

    @functools.cached_property
    def firsts(self) -> np.ndarray | None:
        """Ids of the rows that are the first of a row of the data, ascending, int64; None where each row of the data is
        one row here.
        """
        if not self.manifest["spread"]:
            return None
        lines = [self._shard(i)["line"].to_numpy(zero_copy_only=False) for i in range(len(self._starts) - 1)]
        return np.concatenate(
            [
                np.flatnonzero(np.diff(part, prepend=-1)) + start
                for part, start in zip(lines, self._starts, strict=False)
            ]
        )

    def rows_of(self, data_rows: int | None) -> int:
        """Number of rows here that come from the first `data_rows` rows of the data; all rows for None."""
        if data_rows is None or self.firsts is None:
            return min(self.num_rows, data_rows or self.num_rows)
        return int(self.firsts[data_rows]) if data_rows < len(self.firsts) else self.num_rows

    def data_rows(self, rows: int) -> int:
        """Number of rows of the data that the first `rows` rows here come from."""
        return rows if self.firsts is None else int(np.searchsorted(self.firsts, rows))

    def fetch(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """The columns of rows, in the given order: token columns as NumPy views, others as Python values.

        Args:
            rows: row ids, int64 [rows].
        """
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        picked = [
            (self._shard(int(shard)), int(row - self._starts[shard])) for shard, row in zip(shard_of, rows, strict=True)
        ]
        names = self._shard(int(shard_of[0])) if len(rows) else {}
        return {name: [_value(shard[name], row) for shard, row in picked] for name in names if name != "line"}

    def locate(self, row: int) -> tuple[str, int]:
        """The file that a row was read from, and its line in it, from 1 (in Parquet and Arrow files the number of the
        row).
        """
        shard = int(np.searchsorted(self._starts, row, side="right") - 1)
        info = self.manifest["shards"][shard]
        return info["source"], info["first_line"] + int(
            _value(self._shard(shard)["line"], int(row - self._starts[shard]))
        )

    def column(self, name: str) -> np.ndarray:
        """All values of one column that does not hold tokens, e.g. all labels."""
        return np.concatenate(
            [self._shard(i)[name].to_numpy(zero_copy_only=False) for i in range(len(self._starts) - 1)]
        )

    def value_counts(self, name: str, num_rows: int | None = None) -> Counter[Any]:
        """How often each value of a column that does not hold tokens occurs in the first `num_rows` rows; in all rows
        for None.
        """
        counts: Counter[Any] = Counter()
        for index, start in enumerate(self._starts[:-1]):
            if num_rows is None or start < num_rows:
                part = self._shard(index)[name].slice(0, None if num_rows is None else num_rows - int(start))
                counts.update({entry["values"].as_py(): entry["counts"].as_py() for entry in pc.value_counts(part)})
        return counts

    def _shard(self, index: int) -> dict[str, Any]:
        if index not in self._shards:
            path = below(self.folder, self.manifest["shards"][index]["file"])
            self._storage.fetch(path)
            file = pa.memory_map(str(path))
            batch = pa.ipc.open_file(file).get_batch(0)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            # lists are kept as (offsets, values), so that a row is a view and not a Python list
            self._shards[index] = {
                name: (column.offsets.to_numpy(), column.values.to_numpy())
                if pa.types.is_large_list(column.type)
                else column
                for name, column in columns.items()
            }
        return self._shards[index]


def _value(column: Any, row: int) -> Any:
    if isinstance(column, tuple):
        offsets, values = column
        return values[offsets[row] : offsets[row + 1]]
    return column[row].as_py()


@functools.lru_cache(maxsize=16)
def open_store(folder: str) -> TokenStore:
    """The store of a folder, opened once in each process: remote functions that run one after another share it."""
    return TokenStore(folder)
