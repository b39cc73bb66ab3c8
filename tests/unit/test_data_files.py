"""Files as people have them: what `datasets` and pandas write, JSON of several shapes, other separators and encodings,
columns twice.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from row_files import jsonl_of, problem, read, values

from raytrain_nlp.data.reading.readers import BadRow, Row
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.planning.inputs import check_repeated

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(7)]
ODD = [
    {"text": text, "label": label}
    for text, label in zip(
        ['he said "hi"', "a\ttab", "two\nlines", "plain", '"', 'x "y', "snö €", " a;b,c|d "], "abababab", strict=True
    )
]


def saved(folder: Path, rows: list[dict[str, Any]] | None = None, **kwargs: Any) -> Path:
    datasets.Dataset.from_list(rows or ROWS).save_to_disk(str(folder), **kwargs)
    return folder


def bad(path: Path) -> list[tuple[int, str]]:
    return [(row.line + 1, row.reason) for row in read(path) if isinstance(row, BadRow)]


# folders of datasets.save_to_disk


def test_saved_data_are_what_state_json_says(tmp_path: Path) -> None:
    """Maps and shuffles cached beside them, and shards of an earlier save, are no rows; folder, glob and trailing slash
    say the same.
    """
    folder = saved(tmp_path / "d", num_shards=2)
    loaded = datasets.load_from_disk(str(folder))
    loaded.map(lambda row: {"text": row["text"].upper()}, cache_file_name=str(folder / "cache-f35e30cdf484259a.arrow"))
    loaded.shuffle(seed=1, indices_cache_file_name=str(folder / "cache-0123456789abcdef.arrow"))
    (folder / "data-00000-of-00001.arrow").write_bytes((folder / "data-00000-of-00002.arrow").read_bytes())
    for spec in (folder, f"{folder}/", f"{folder}/*.arrow"):
        assert values(spec) == ROWS, spec


def test_cache_of_a_downloaded_dataset_is_read_without_its_maps(tmp_path: Path) -> None:
    """A folder of the `datasets` cache has no state.json: `cache-*.arrow` is a map there, too."""
    folder = saved(tmp_path / "d")
    (folder / "state.json").unlink()
    (folder / "data-00000-of-00001.arrow").rename(folder / "mine-train.arrow")
    (folder / "cache-f35e30cdf484259a.arrow").write_bytes((folder / "mine-train.arrow").read_bytes())
    assert values(folder) == ROWS


def test_selected_and_shuffled_data_are_the_rows_that_were_saved(tmp_path: Path) -> None:
    """Also where an older `datasets` kept the order in a file of indices of its own."""
    chosen = datasets.Dataset.from_list(ROWS).shuffle(seed=3).select([5, 0, 2])
    chosen.save_to_disk(str(tmp_path / "new"))
    assert values(tmp_path / "new") == list(chosen)
    old, order = saved(tmp_path / "old", num_shards=2), [6, 0, 3, 3]
    with (
        pa.OSFile(str(old / "indices.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema({"indices": pa.uint64()})) as writer,
    ):
        writer.write_table(pa.table({"indices": pa.array(order, pa.uint64())}))
    state = json.loads((old / "state.json").read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]}
    (old / "state.json").write_text(json.dumps(state))
    assert values(old) == [ROWS[i] for i in order]
    before = find_files([str(old)], "")[0].digest
    (old / "data-00000-of-00002.arrow").write_bytes((old / "data-00001-of-00002.arrow").read_bytes())
    assert find_files([str(old)], "")[0].digest != before


def test_split_of_a_dataset_dict_is_chosen_by_name(tmp_path: Path) -> None:
    """Without a name one line says which there are; with one split there is nothing to choose; a colon in a path is
    none.
    """
    both = datasets.DatasetDict(
        {"train_sft": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    )
    both.save_to_disk(str(tmp_path / "d"))
    assert (
        values(f"{tmp_path}/d:train_sft") == ROWS
        and values(f"{tmp_path}/d:test") == ROWS[:2]
        and values(tmp_path / "d" / "test") == ROWS[:2]
    )
    line = (
        f"data.train: holds the splits train_sft, test ({tmp_path}/d). Choose one: {tmp_path}/d:train_sft or "
        f"{tmp_path}/d:test; or name files."
    )
    assert problem(tmp_path / "d") == line
    assert problem(f"{tmp_path}/d:tset") == f"data.train: has no split 'tset' ({tmp_path}/d). Did you mean 'test'?"
    datasets.DatasetDict({"train": both["test"]}).save_to_disk(str(tmp_path / "one:train"))
    assert values(tmp_path / "one:train") == ROWS[:2] and values(f"{tmp_path}/one:train:train") == ROWS[:2]


def test_folder_of_files_named_after_splits(tmp_path: Path) -> None:
    """A clone of a hub dataset, or train and test files side by side: one split is chosen, as `load_dataset` would;
    others are left alone.
    """
    for name in ("data/train_sft-00000-of-00002", "data/train_sft-00001-of-00002", "data/test_sft-00000-of-00001"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / f"{name}.jsonl").write_bytes(jsonl_of([{"text": name}]))
    assert [row["text"] for row in values(f"{tmp_path}/hub:train_sft")] == [
        "data/train_sft-00000-of-00002",
        "data/train_sft-00001-of-00002",
    ]
    assert "holds the splits test_sft, train_sft" in problem(tmp_path / "hub")
    (tmp_path / "plain").mkdir()
    for name in ("train.csv", "my-dev.csv"):
        (tmp_path / "plain" / name).write_text(f"text\n{name}\n")
    assert values(f"{tmp_path}/plain:validation") == [
        {"text": "my-dev.csv"}
    ] and "holds the splits validation, train" in problem(tmp_path / "plain")
    (tmp_path / "plain" / "notes.csv").write_text("text\nnotes.csv\n")  # a folder of documents, some of them called so
    assert len(values(tmp_path / "plain")) == 3 and len(values(f"{tmp_path}/plain/*")) == 3


# JSON


PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)
SHAPES = {
    "pretty.json": PRETTY,
    "pretty.jsonl": PRETTY + "\n",
    "array.jsonl": json.dumps(ROWS),
    "joined.json": "".join(map(json.dumps, ROWS)),
    "tabs.json": "\n\n".join(json.dumps(row, indent="\t") for row in ROWS),
    "commas.json": ",\n".join(map(json.dumps, ROWS)),
    "table.json": json.dumps({"version": "1.0", "data": ROWS}),
    "pretty_table.json": json.dumps({"data": ROWS}, indent=1),
    "lines_then_pretty.json": json.dumps(ROWS[0]) + "\n" + "\n".join(json.dumps(row, indent=2) for row in ROWS[1:]),
    "crlf.json": PRETTY.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("packed", [False, True])
def test_shapes_of_json(tmp_path: Path, name: str, packed: bool) -> None:
    """Objects of several lines, arrays, and tables give the rows they hold, whatever the suffix is."""
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(SHAPES[name].encode()) if packed else SHAPES[name].encode())
    assert values(path) == ROWS


def test_one_object_and_a_list_of_texts(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2))
    (tmp_path / "texts.json").write_text(json.dumps(["a", "b"]))
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}))
    assert values(tmp_path / "one.json") == ROWS[:1] and values(tmp_path / "texts.json") == [
        {"text": "a"},
        {"text": "b"},
    ]
    assert values(tmp_path / "chat.json") == [{"messages": [{"role": "user", "content": "x"}]}]


def test_damaged_object_costs_itself(tmp_path: Path) -> None:
    """Of objects of several lines a damaged one is told at its line, and a byte that is no UTF-8 costs its object
    only.
    """
    content = b'{\n "text": "a"\n}\n{\n "text": \n}\n{\n "text": "caf\xe9"\n}\n{\n "text": "b"\n}\n'
    (tmp_path / "a.json").write_bytes(content)
    assert [row.values for row in read(tmp_path / "a.json") if isinstance(row, Row)] == [{"text": "a"}, {"text": "b"}]
    told = bad(tmp_path / "a.json")
    assert (
        [line for line, _ in told] == [4, 7]
        and told[0][1].startswith("not JSON")
        and told[1][1].startswith("not UTF-8 (0xe9")
    )


def test_large_file_of_lines_is_cut_and_one_of_objects_is_not(tmp_path: Path) -> None:
    rows = [{"text": "x" * 100 + str(i)} for i in range(50)]
    (tmp_path / "lines.jsonl").write_bytes(jsonl_of(rows))
    (tmp_path / "objects.jsonl").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    (tmp_path / "wide.jsonl").write_bytes(jsonl_of(rows).decode().encode("utf-16"))
    pieces = {
        name: list(split_file(find_files([str(tmp_path / name)], "")[0], 1000))
        for name in ("lines.jsonl", "objects.jsonl", "wide.jsonl")
    }
    assert [len(found) for found in pieces.values()] == [6, 1, 1]
    assert all(values(tmp_path / name) == rows for name in pieces)


# columns twice


def test_keys_and_columns_that_stand_twice(tmp_path: Path) -> None:
    """A JSON object with a key twice is a bad row, at any depth and in any shape; a Parquet or Arrow file with a column
    twice is refused.
    """
    row = '{"text": "a", "meta": {"x": 1, "x": 2}}'
    for name, content in {
        "a.jsonl": f'{row}\n{{"text": "b"}}\n',
        "a.json": f'[{row}, {{"text": "b"}}]',
        "p.json": f'{{\n{row[1:]}\n{{"text": "b"}}',
    }.items():
        (tmp_path / name).write_text(content)
        assert bad(tmp_path / name) == [(1, "the key 'x' stands there twice")], name
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "label", "label"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        assert (
            problem(tmp_path / name)
            == f"{tmp_path / name}: has the column 'label' more than once. Rename or remove one of them."
        )


def test_csv_columns_that_stand_twice(tmp_path: Path) -> None:
    """One that the task reads is refused; another is kept under the name pandas gives it."""
    path = tmp_path / "a.csv"
    path.write_text("label,text,label,,text.1,text\n0,a,A,x,y,z\n")
    assert list(values(path)[0]) == [*pd.read_csv(path).columns]
    files = find_files([str(path)], "data.train")
    told = [str(found) for found in check_repeated(files, ["label"], "data.train")]
    assert told == [f"data.train: the column 'label' stands more than once in {path}. Rename or remove one of them."]
    assert check_repeated(files, ["other"], "data.train") == [] and len(check_repeated(files, None, "data.train")) == 2


# separators, quotes, encodings


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("quoting", [0, 1])
def test_what_pandas_writes_is_read(tmp_path: Path, separator: str, suffix: str, quoting: int) -> None:
    """`DataFrame.to_csv` with any separator and any file name: quotes, tabs, line breaks, all fields quoted."""
    path = tmp_path / f"a{suffix}"
    pd.DataFrame(ODD).to_csv(path, sep=separator, index=False, quoting=quoting)
    assert values(path) == ODD


def test_quotes_of_glue_stay(tmp_path: Path) -> None:
    """In TSV a quote that quotes nothing is a sign: open, at both ends, in the middle, and in a row that is bad for
    another reason.
    """
    lines = [
        "text\tlabel",
        '"open\t0',
        '"both ends"\t1',
        'in "the" middle\t0',
        '""\t1',
        '"few',
        "next\t0",
        '"a" and "b"\t1',
    ]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    assert [row.values["text"] for row in read(tmp_path / "a.tsv") if isinstance(row, Row)] == [
        '"open',
        '"both ends"',
        'in "the" middle',
        '""',
        "next",
        '"a" and "b"',
    ]
    assert bad(tmp_path / "a.tsv") == [(6, "1 fields where the header has 2")]


def test_sign_in_a_text_is_no_separator(tmp_path: Path) -> None:
    """One column whose rows hold `;`, a header that holds a comma of its own, and the first line spreadsheets write."""
    (tmp_path / "one.csv").write_text("text\na; b\nc; d\n")
    (tmp_path / "semicolons.csv").write_text('"id, number";text\n1;"a, b"\n2;c, d, e\n')
    (tmp_path / "sep.csv").write_text("sep=;\ntext;label\na,b;1\n")
    assert values(tmp_path / "one.csv") == [{"text": "a; b"}, {"text": "c; d"}]
    assert values(tmp_path / "semicolons.csv") == [
        {"id, number": "1", "text": "a, b"},
        {"id, number": "2", "text": "c, d, e"},
    ]
    assert values(tmp_path / "sep.csv") == [{"text": "a,b", "label": "1"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "p.json", "a.txt"])
def test_encodings_are_recognised(tmp_path: Path, encoding: str, name: str) -> None:
    if encoding == "utf-32" and name == "p.json":
        encoding = "utf-16"
    rows = [{"text": "snö 中文 €", "label": "a"}, {"text": "plain", "label": "b"}]
    content = {
        "a.csv": "text,label\nsnö 中文 €,a\nplain,b\n",
        "a.tsv": "text\tlabel\r\nsnö 中文 €\ta\r\nplain\tb\r\n",
        "a.txt": "snö 中文 €\nplain\n",
        "a.jsonl": jsonl_of(rows).decode(),
        "a.json": json.dumps(rows),
        "p.json": "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows),
    }[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert values(tmp_path / name) == ([{"text": row["text"]} for row in rows] if name == "a.txt" else rows)


def test_latin_1_is_named(tmp_path: Path) -> None:
    """A byte of another encoding is told with it, in every kind of text file."""
    for name, content in {
        "a.csv": "text,label\nsnö,a\n",
        "a.jsonl": '{"text": "snö"}\n',
        "a.json": '[{"text": "snö"}]',
        "a.txt": "snö\n",
    }.items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        (_, reason), *others = bad(tmp_path / name)
        assert "not UTF-8" in reason and "0xf6" in reason and "Latin-1" in reason and not others, name


def test_utf_8_that_holds_a_zero_byte_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a text with one \0 in it\nand another line\n")
    assert [row["text"] for row in values(tmp_path / "a.txt")] == ["a text with one \0 in it", "and another line"]


def test_long_tsv_row_is_not_swallowed(tmp_path: Path) -> None:
    """A quote left open in a row with too few fields costs that row; the next rows are read, however many there are."""
    out = io.StringIO()
    out.write('text\tlabel\n"open\n')
    out.writelines(f"row {i}\t{i % 2}\n" for i in range(3000))
    (tmp_path / "a.tsv").write_text(out.getvalue())
    assert (
        len([row for row in read(tmp_path / "a.tsv") if isinstance(row, Row)]) == 3000
        and len(bad(tmp_path / "a.tsv")) == 1
    )
