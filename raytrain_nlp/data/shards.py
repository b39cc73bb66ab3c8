"""Token shards: memory-mappable Arrow files of one record batch each, with `lengths.npy` and a manifest, which is
written last.

    manifest.json   {"rows", "bad_rows", "labels", "shards": [{"file", "rows", "source", "first_line"}], ...}
    lengths.npy     int32, shape [rows]
    checksums.npy   uint32, shape [rows]: CRC-32 of the columns of each row, verified whenever the row is read
    shard-*.arrow   input_ids (list of int32), labels of seq2seq tasks, further columns of tokens, line,
                    label (text, number or list of texts)

The rows of a store are the rows of the data in the order of the files, without bad ones. Where one row of the data
became several, these are next to each other.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_nlp.errors import DamagedTokensError
from raytrain_nlp.storage import storage_of
from raytrain_nlp.storage.names import below
from raytrain_nlp.storage.untrusted import read_json_file

MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
CHECKSUMS = "checksums.npy"
DAMAGED = "damaged"
"""Name of a file by which a reader says that a folder of tokens is to be made again."""
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
        for name in (MANIFEST, LENGTHS, CHECKSUMS):
            self._storage.fetch(self.folder / name)
        self.manifest: dict[str, Any] = read_json_file(self.folder / MANIFEST)
        self.lengths: np.ndarray = np.load(self.folder / LENGTHS, mmap_mode="r")
        kept = self.folder / CHECKSUMS  # absent from folders of earlier versions
        self.checksums: np.ndarray | None = np.load(kept, mmap_mode="r") if kept.exists() else None
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

        Raises:
            DamagedTokensError: a row is not what was written.
        """
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        picked = [
            (self._shard(int(shard)), int(row - self._starts[shard])) for shard, row in zip(shard_of, rows, strict=True)
        ]
        names = [name for name in self._shard(int(shard_of[0])) if name != "line"] if len(rows) else []
        found = {name: [_value(shard[name], row) for shard, row in picked] for name in names}
        start = _start(names)
        for place, kept in enumerate(self.checksums[rows] if self.checksums is not None else ()):
            if checksum(start, (values[place] for values in found.values())) != kept:
                raise self._damaged(int(shard_of[place]), f"row {rows[place]} is not what was written")
        return found

    def _damaged(self, shard: int, what: str) -> DamagedTokensError:
        """The error for a shard that has changed since it was written. Its tokens are then made, or fetched, again."""
        info = self.manifest["shards"][shard]
        path = below(self.folder, info["file"])
        if self._storage.shared:
            (self.folder / DAMAGED).touch()
        else:
            path.unlink(missing_ok=True)
        return DamagedTokensError(f"the tokens of {info['source']} are damaged: {path}: {what}.", str(self.folder))

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
            try:
                self._shards[index] = _open_shard(path)
            except (pa.ArrowException, ValueError, KeyError, OSError) as error:
                if getattr(error, "errno", None):  # the file system's, not Arrow's
                    raise
                raise self._damaged(index, f"Arrow cannot read it ({error})") from error
        return self._shards[index]


def _open_shard(path: Path) -> dict[str, Any]:
    """The columns of a shard. Lists are kept as (offsets, values), so that a row is a view and not a Python list."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    batch.validate(full=True)  # offsets that lead elsewhere would end the process
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return {
        name: (column.offsets.to_numpy(), column.values.to_numpy()) if pa.types.is_large_list(column.type) else column
        for name, column in columns.items()
    }


def _start(names: Iterable[str]) -> int:
    """CRC-32 of the names of columns, with which that of each row begins."""
    return zlib.crc32(" ".join(names).encode())


def checksum(found: int, values: Iterable[Any]) -> int:
    """CRC-32 of one row.

    Args:
        found: of the names of the columns.
        values: of the columns, in order: arrays of tokens, or plain values.
    """
    for value in values:
        found = zlib.crc32(value.data if isinstance(value, np.ndarray) else repr(value).encode(), found)
    return found


def checksums_of(path: Path) -> np.ndarray:
    """The checksum of each row of a shard, read back from its file: uint32, shape [rows]."""
    columns = _open_shard(path)
    rows = len(columns.pop("line"))
    start = _start(columns)
    found = (checksum(start, (_value(column, row) for column in columns.values())) for row in range(rows))
    return np.fromiter(found, np.uint32, rows)


def _value(column: Any, row: int) -> Any:
    if isinstance(column, tuple):
        offsets, values = column
        return values[offsets[row] : offsets[row + 1]]
    return column[row].as_py()


def open_store(folder: str) -> TokenStore:
    """The store of a folder, opened once in each process: remote functions that run one after another share it."""
    return _open_store(folder, written_at(folder))


@functools.lru_cache(maxsize=16)
def _open_store(folder: str, written: int) -> TokenStore:
    return TokenStore(folder)


def written_at(folder: str) -> int:
    """When the tokens of a folder were made, in nanoseconds; 0 while they are not here. Damaged ones are made again in
    the same folder.
    """
    try:
        return (Path(folder) / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0
