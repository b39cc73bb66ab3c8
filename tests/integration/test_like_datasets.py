"""Small files of every shape, read by us and by `datasets.load_dataset("json" | "csv" | "parquet")`: the same rows, or
the difference is said here.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from row_files import read

from raytrain_nlp.data.reading.readers import BadRow

ROWS = [
    {"text": "plain", "label": 0},
    {"text": 'a "b" c', "label": 1},
    {"text": "snö 中文 € \U0001f40d", "label": 0},
    {"text": "two\nlines, a\ttab", "label": 1},
]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def frame(**kwargs: Any) -> str:
    return pd.DataFrame(ROWS).to_csv(**{"index": False, **kwargs})


def table(rows: list[dict[str, Any]], **kwargs: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, **kwargs)
    return out.getvalue()


JSON: dict[str, str | bytes] = {
    "lines.jsonl": lines(ROWS),
    "no_end.jsonl": lines(ROWS).rstrip(),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n"),
    "bom.jsonl": lines(ROWS).encode("utf-8-sig"),
    "lines.json": lines(ROWS),
    "array.json": json.dumps(ROWS),
    "array.jsonl": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2),
    "one.json": json.dumps(ROWS[0]),
    "one_indented.json": json.dumps(ROWS[0], indent=2),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "joined.json": "".join(map(json.dumps, ROWS)),
    "missing.jsonl": lines([ROWS[0], {"text": "no label"}, {"label": 1}]),
    "nulls.jsonl": lines([{"text": None, "label": 1}, ROWS[0]]),
    "nested.jsonl": lines([{"translation": {"en": "a", "de": "b"}}, {"translation": {"en": "c", "de": "d"}}]),
    "chat.jsonl": lines([{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}] * 2),
    "lists.jsonl": lines([{"text": "a", "label": [0, 1]}, {"text": "b", "label": []}]),
    "escapes.jsonl": '{"text": "\\u00e9 \\n \\/ \\ud83d\\ude00"}\n',
    "numbers.jsonl": lines([{"text": "a", "label": 1.5}, {"text": "b", "label": 2.0}]),
    "texts.json": json.dumps(["a", "b"]),
    "table.json": json.dumps({"data": ROWS}),
    "blank.jsonl": "\n" + lines(ROWS).replace("\n", "\n\n"),
    "twice.jsonl": '{"text": "a", "text": "b"}\n' + lines(ROWS),
}
CSV: dict[str, str | bytes] = {
    "a.csv": frame(),
    "quoted.csv": frame(quoting=1),
    "bom.csv": frame().encode("utf-8-sig"),
    "crlf.csv": frame(lineterminator="\r\n"),
    "blank.csv": "text,label\n\na,0\n\nb,1\n",
    "index.csv": frame(index=True),
    "spaces.csv": "text, label\n a , x\n",
    "twice.csv": "text,label,label\na,0,1\n",
    "missing.csv": "text,label\nNA,0\n,1\nnull,0\n",
    "numbers.csv": "text,label\n007,1.0\n1e3,0\n",
    "semicolon.csv": frame(sep=";"),
    "utf16.csv": frame().encode("utf-16"),
    "few.csv": "text,label\na\nb,1\n",
}
PARQUET: dict[str, str | bytes] = {
    "a.parquet": table(ROWS),
    "groups.parquet": table(ROWS, row_group_size=1),
    "nested.parquet": table([{"translation": {"en": "a", "de": "b"}}]),
    "lists.parquet": table([{"text": "a", "label": [0.0, 1.0]}, {"text": None, "label": []}]),
    "zstd.parquet": table(ROWS, compression="zstd"),
}
DIFFERENT = {
    # name: (what we read, why that is another thing than what `datasets` reads)
    "table.json": (ROWS, "one row with a list there; here the list's rows, as with its argument field='data'"),
    "twice.jsonl": (ROWS, "there the last one of two keys wins; here the row is bad and told"),
    "missing.csv": (
        [{"text": "NA", "label": "0"}, {"text": "", "label": "1"}, {"text": "null", "label": "0"}],
        "NA, null and nothing are None there; here text is text",
    ),
    "numbers.csv": (
        [{"text": "007", "label": "1.0"}, {"text": "1e3", "label": "0"}],
        "007 is the number 7 there; here all cells are text, and labels 1.0 and 1 are one",
    ),
    "semicolon.csv": (
        [{**row, "label": str(row["label"])} for row in ROWS],
        "one garbled column there; here the separator is found",
    ),
    "utf16.csv": ([{**row, "label": str(row["label"])} for row in ROWS], "an error there"),
    "few.csv": ([{"text": "b", "label": "1"}], "a cell that is not there is None there; here the row is bad and told"),
}


def theirs(path: Path, kind: str, cache: Path) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache)))


def plain(rows: list[Any], as_text: bool) -> list[dict[str, Any]]:
    """Without fields that are null, which in a table stand for those that a row has not."""
    return [{key: str(value) if as_text else value for key, value in row.items() if value is not None} for row in rows]


@pytest.mark.parametrize(("kind", "files"), [("json", JSON), ("csv", CSV), ("parquet", PARQUET)])
def test_rows_are_those_of_datasets(tmp_path: Path, kind: str, files: dict[str, str | bytes]) -> None:
    datasets.disable_progress_bars()
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read(path)
        ours = plain([row.values for row in found if not isinstance(row, BadRow)], kind == "csv")
        if name in DIFFERENT:
            assert ours == DIFFERENT[name][0], name
            continue
        assert not any(isinstance(row, BadRow) for row in found), name
        assert ours == plain(theirs(path, kind, tmp_path / "cache"), kind == "csv"), name


def test_differences_that_are_said_are_there(tmp_path: Path) -> None:
    for name, (expected, why) in DIFFERENT.items():
        kind, files = ("json", JSON) if name in JSON else ("csv", CSV)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content := files[name], bytes) else content.encode())
        try:
            rows = theirs(path, kind, tmp_path / "cache")
        except Exception:
            continue
        assert plain(rows, kind == "csv") != expected, why
