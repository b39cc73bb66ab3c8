"""The same rows in every format, and what a split of such files holds: for files on disk and in an object store."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.errors import InputError

ROWS = [
    {"text": text, "label": i % 2}
    for i, text in enumerate(
        ["plain", "snö \u2028 \U0001f40d", 'quote " comma , tab \t', " spaces ", "line\nbreak", "=1+1"]
    )
]
LINES = [row["text"] for row in ROWS if "\n" not in row["text"]]
TEXTS = [{"text": str(row["text"]), "label": str(row["label"])} for row in ROWS]


def jsonl_of(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet_of(rows: list[dict[str, Any]], group: int = 2) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=group)
    return out.getvalue()


def arrow_of(rows: list[dict[str, Any]], stream: bool) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


FORMATS: dict[str, tuple[bytes, list[dict[str, Any]]]] = {
    "a.jsonl": (jsonl_of(ROWS), ROWS),
    "a.ndjson": (jsonl_of(ROWS), ROWS),
    "bom.jsonl": (b"\xef\xbb\xbf" + jsonl_of(ROWS), ROWS),
    "crlf.jsonl": (jsonl_of(ROWS, "\r\n"), ROWS),
    "blank.jsonl": (b"\n \n" + jsonl_of(ROWS, "\n\n") + b"\t\n", ROWS),
    "lines.json": (jsonl_of(ROWS), ROWS),
    "array.json": (json.dumps(ROWS).encode(), ROWS),
    "indented.json": (b"\n" * 100 + json.dumps(ROWS, indent=2).encode(), ROWS),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), ROWS),
    "a.csv": (csv_of(ROWS), TEXTS),
    "bom.csv": (b"\xef\xbb\xbf" + csv_of(ROWS), TEXTS),
    "unix.csv": (b"\n".join(csv_of(ROWS[:4]).split(b"\r\n")), TEXTS[:4]),
    "a.tsv": (
        b'text\tlabel\nan "odd quote\t0\r\nsn\xc3\xb6\t1',
        [{"text": 'an "odd quote', "label": "0"}, {"text": "snö", "label": "1"}],
    ),
    "a.parquet": (parquet_of(ROWS), ROWS),
    "file.arrow": (arrow_of(ROWS, stream=False), ROWS),
    "file.feather": (arrow_of(ROWS, stream=False), ROWS),
    "stream.arrow": (arrow_of(ROWS, stream=True), ROWS),
    "a.txt": ("\n".join(LINES).encode(), [{"text": line} for line in LINES]),
}


def read(*specs: str | Path) -> list[Row | BadRow]:
    """What every piece of every file of a split holds, in order."""
    found = find_files([str(spec) for spec in specs], "data.train")
    rows = [row for file in found for piece in split_file(file) for row in read_rows(piece)]
    return [row for row in rows if isinstance(row, (Row, BadRow))]


def values(*specs: str | Path) -> list[Any]:
    return [row.values if isinstance(row, Row) else row for row in read(*specs)]


def problem(*specs: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read(*specs)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def odd_lines(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["é" * draw.choice([0, 1, 2, 3, 80]) + f" {i}" for i in range(20)]
