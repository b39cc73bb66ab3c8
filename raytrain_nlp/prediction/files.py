"""Files of predictions, in a folder or a bucket: parts while predictions are made, then one file or a folder of
files.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from raytrain_nlp.host.scratch import scratch_folder
from raytrain_nlp.storage.atomic import replacing

BAD = b"raytrain_nlp.bad"
"""Key in the metadata of a part's schema: the input rows that could not be parsed, as a JSON list."""


def part_name(piece: int, chunk: int) -> str:
    """File name of a part. Names sort in the order of the input rows.

    Args:
        piece: index of the piece of the input.
        chunk: index of the part in the piece.
    """
    return f"part-{piece:06d}-{chunk:07d}.arrow"


def piece_of_part(name: str) -> int:
    """Index of the piece that a part belongs to."""
    return int(name.split("-")[1])


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table with the columns of all rows. A column with values of several types is stored as JSON
    text.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            columns[name] = pa.array(
                [
                    value if value is None or isinstance(value, str) else json.dumps(value, default=str)
                    for value in values
                ],
                pa.string(),
            )
    return pa.table(columns)


@contextlib.contextmanager
def open_output(path: str) -> Iterator[Any]:
    """A binary file for writing that becomes visible when it is complete; where the block raises, no file appears."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    filesystem, inner = fsspec.core.url_to_fs(path)
    if isinstance(filesystem, LocalFileSystem):
        with replacing(Path(inner), "wb") as file:
            yield file
        return
    # written to this node first: fsspec publishes a file in a bucket when it is closed, also after an exception
    with scratch_folder() as folder:
        with (folder / "output").open("wb") as file:
            yield file
        filesystem.put_file(str(folder / "output"), inner)


def list_parts(folder: str) -> list[str]:
    """Full paths of the parts in a folder, sorted."""
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(folder)
    filesystem.invalidate_cache()
    remote = "://" in folder
    names = sorted(
        name
        for name in (filesystem.ls(inner, detail=False) if filesystem.isdir(inner) else [])
        if name.rsplit("/", 1)[-1].startswith("part-")
    )
    return [filesystem.unstrip_protocol(name) if remote else name for name in names]


def read_part(path: str) -> pa.Table:
    import fsspec

    with fsspec.open(path, "rb") as file:
        return pa.ipc.open_file(io.BytesIO(file.read())).read_all()


def write_parts(parts: list[str], path: str, kind: str) -> int:
    """Join parts, in order, to one file with the columns of all. Returns the number of rows.

    Args:
        kind: parquet, jsonl or csv.
    """
    schema = (
        pa.unify_schemas([read_part(part).schema for part in parts], promote_options="permissive").remove_metadata()
        if parts
        else pa.schema([])
    )
    rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal rows
        for part in parts:
            table = _with_schema(read_part(part), schema)
            rows += table.num_rows
            yield table

    with open_output(path) as file:
        _WRITERS[kind](file, schema, tables())
    return rows


def remove_tree(path: str) -> None:
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(path)
    if filesystem.exists(inner):
        filesystem.rm(inner, recursive=True)


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [field for field in schema if field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def _write_parquet(file: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    import pyarrow.parquet as parquet

    with parquet.ParquetWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_jsonl(file: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    for table in tables:
        for row in table.to_pylist():
            file.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace"))


def _write_csv(file: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Lists and mappings are written as JSON."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(schema.names)
    for table in tables:
        for row in table.to_pylist():
            writer.writerow(
                [
                    json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else value
                    for value in row.values()
                ]
            )
    text.detach()


_WRITERS = {"parquet": _write_parquet, "jsonl": _write_jsonl, "csv": _write_csv}
