"""What single readers make of bytes: separators, encodings, JSON of several shapes, splits of folders and of the hub;
against csv, json and datasets.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets.data_files
import fsspec
import pandas as pd
import pytest

from raytrain_nlp.data.reading import hub_datasets
from raytrain_nlp.data.reading.delimited import read_separated, repeated_columns
from raytrain_nlp.data.reading.encodings import as_utf8, encoding_of, is_json_lines, is_split_by_lines
from raytrain_nlp.data.reading.folders import find_in_folder, split_spec, without_stale
from raytrain_nlp.data.reading.hub_datasets import find_dataset_files
from raytrain_nlp.data.reading.json_rows import is_table, row_of_line, rows_of_list, rows_of_whole
from raytrain_nlp.data.reading.rows import BadRow, Blank, Row, bad_row
from raytrain_nlp.data.reading.sources import Piece
from raytrain_nlp.errors import InputError

TEXTS = ["plain", "a,b;c", 'he said "hi"', "two\nlines", " spaced ", "Zürich 😀", "'", "x\ty"]


def separated(tmp_path: Path, content: str | bytes, kind: str = "csv") -> list[Any]:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_separated(Piece(str(path), kind)))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_gives_the_rows_that_the_csv_module_wrote(tmp_path: Path, separator: str, end: str) -> None:
    """Whatever separates, which the file says itself; as pandas reads them when it is told."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=end)
    writer.writerows([["text", "label"], *([text, str(place)] for place, text in enumerate(TEXTS))])
    found = separated(tmp_path, out.getvalue())
    assert [row.values for row in found] == [{"text": text, "label": str(place)} for place, text in enumerate(TEXTS)]
    table = pd.read_csv(io.StringIO(out.getvalue()), sep=separator, dtype=str)
    assert [row.values for row in found] == table.to_dict("records")


def test_a_row_of_another_width_is_bad_and_the_next_one_is_read(tmp_path: Path) -> None:
    found = separated(tmp_path, "text,label\na,1\nb,2,3\nc\nd,4\n")
    assert [(type(row).__name__, row.line) for row in found] == [("Row", 1), ("BadRow", 2), ("BadRow", 3), ("Row", 4)]
    assert (
        found[1].reason == "3 fields where the header has 2"
        and found[1].text == "b,2,3"
        and found[3].values == {"text": "d", "label": "4"}
    )


def test_a_byte_that_is_no_utf8_costs_its_row_alone_and_is_named(tmp_path: Path) -> None:
    found = separated(tmp_path, b"text,label\na,1\ncaf\xe9,2\nb,3\n")
    assert [isinstance(row, Row) for row in found] == [
        True,
        False,
        True,
    ] and "not UTF-8 (0xe9: Latin-1 or Windows-1252?" in found[1].reason


def test_in_tsv_a_lone_quote_is_a_sign_like_any_other(tmp_path: Path) -> None:
    """As in the files of GLUE: read as a quote it would swallow the rows behind it."""
    found = separated(tmp_path, 'text\tlabel\n"Hello he said\t1\n5" disk\t2\nend\t3\n', "tsv")
    assert [row.values["text"] for row in found] == ['"Hello he said', '5" disk', "end"]


def test_columns_without_a_name_or_of_one_name_are_called_as_pandas_calls_them(tmp_path: Path) -> None:
    content = "text,text,,label\na,b,c,1\n"
    assert list(separated(tmp_path, content)[0].values) == list(pd.read_csv(io.StringIO(content)).columns)
    assert repeated_columns(str(tmp_path / "rows.csv"), "csv") == ["text"]


def test_the_line_by_which_excel_says_the_separator_is_no_header(tmp_path: Path) -> None:
    found = separated(tmp_path, "sep=;\ntext;label\na,b;1\n")
    assert found == [Row(2, {"text": "a,b", "label": "1"})]


# encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_whatever_a_text_is_written_in_it_is_the_same_text(encoding: str) -> None:
    text = "".join(f'{{"text": "Größe {number}"}}\n' for number in range(200))
    content = text.encode(encoding)
    file, recoded = as_utf8(io.BytesIO(content))
    assert file.read().decode("utf-8-sig") == text and recoded == (not encoding.startswith("utf-8"))
    assert encoding_of(content[:4096]).startswith(encoding.removesuffix("-sig"))
    assert is_split_by_lines(content, "jsonl") == encoding.startswith("utf-8"), (
        "UTF-16 cut at a byte would be other signs"
    )


def test_chinese_utf16_without_a_mark_is_not_taken_for_utf8() -> None:
    text = "".join(f'{{"text": "天地玄黄宇宙洪荒", "label": {number}}}\n' for number in range(50))
    assert (
        encoding_of(text.encode("utf-16-le")) == "utf-16-le"
        and encoding_of(text.encode()) == "utf-8"
        and encoding_of(b"") == "utf-8"
    )


@pytest.mark.parametrize(
    ("head", "lines"),
    [(b'{"a": 1}\n{"a": 2}\n', True), (b'\xef\xbb\xbf{"a": 1}\n', True), (b'[\n{"a": 1}]', False), (b'[{"a": 1}]', False), (b'{\n "a": 1\n}\n', False),  # noqa: E501
     (b'{"a": 1,\n"b": 2}', False), (b'{"a": tru}\n{"a": 1}\n', True)],
)  # fmt: skip
def test_json_that_goes_over_lines_is_not_cut_at_them(head: bytes, lines: bool) -> None:
    assert is_json_lines(head) is lines is is_split_by_lines(head, "jsonl")
    assert is_split_by_lines(head, "text"), "of a text every line is a row"


# JSON

ROWS = [{"text": text, "label": place} for place, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    "content",
    [json.dumps(ROWS), json.dumps(ROWS, indent=2), json.dumps({"data": ROWS}, indent=1), "\n".join(json.dumps(row, indent=1) for row in ROWS),  # noqa: E501
     " ".join(map(json.dumps, ROWS)), "\ufeff" + json.dumps(ROWS, ensure_ascii=False)],
    ids=["array", "array of lines", "table", "objects of lines", "objects in one line", "with a mark"],
)  # fmt: skip
def test_json_of_any_shape_is_the_same_rows(content: str) -> None:
    assert [row.values for row in rows_of_whole(content.encode())] == ROWS


def test_a_list_of_texts_is_rows_of_text() -> None:
    assert [row.values for row in rows_of_list(["a", "b"])] == [{"text": "a"}, {"text": "b"}]
    mixed = list(rows_of_list([{"text": "a"}, "b", 7]))
    assert isinstance(mixed[0], Row) and [row.reason for row in mixed[1:]] == [
        "not a JSON object but str",
        "not a JSON object but int",
    ]


def test_a_damaged_object_costs_itself_alone() -> None:
    content = b'{\n "text": "a"\n}\n{\n "text": tru\n}\n{\n "text": "c"\n}\n'
    found = list(rows_of_whole(content))
    assert [type(row) for row in found] == [Row, BadRow, Row] and [row.line for row in found] == [0, 3, 6]
    twice = list(rows_of_whole(b'[{"a": 1}, {"a": 1, "a": 2}, {"a": 3}]'))
    assert [row.values for row in twice if isinstance(row, Row)] == [{"a": 1}, {"a": 3}] and twice[
        1
    ].reason == "the key 'a' stands there twice"


@pytest.mark.parametrize(
    ("line", "expected"),
    [(b'{"a": "\xc3\xb6"}\n', {"a": "ö"}), (b"  \r\n", Blank), (b"", Blank), (b"[1]", "not a JSON object but list"), (b'{"a": 1', "not JSON"),  # noqa: E501
     (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"), (b'{"a": "\xf6"}', "not UTF-8 at byte 7 (0xf6"), (b"[" * 100_000, "not JSON")],  # noqa: E501
    ids=["row", "blank", "empty", "list", "cut", "twice", "latin-1", "deep"],
)  # fmt: skip
def test_a_line_is_a_row_or_says_why_not(line: bytes, expected: Any) -> None:
    found = row_of_line(4, line)
    assert found.line == 4
    if isinstance(expected, dict):
        assert found == Row(4, expected)
    else:
        assert isinstance(found, Blank) if expected is Blank else isinstance(found, BadRow) and expected in found.reason


def test_what_goes_to_quarantine_is_text_and_not_endless() -> None:
    kept = bad_row(3, "why", b"a\xff" + b"x" * 10_000)
    assert kept.text.startswith("a\\xff") and len(kept.text) < 600 and json.dumps(kept.text)


def test_a_table_is_a_list_of_objects_and_no_row_with_a_field_data() -> None:
    assert is_table({"data": [{"a": 1}], "version": 1})
    assert not any(map(is_table, ({"data": [1, 2]}, {"data": []}, {"data": "x"}, [{"data": [{}]}], None)))


# splits


@pytest.fixture
def folder() -> tuple[Any, str]:
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    return filesystem, "/split"


@pytest.mark.parametrize(
    "names",
    [["train.csv", "my-train-data.csv", "training_0.csv", "dev.csv", "test-1.csv", "eval.csv"], ["train/1.csv", "x/valid/1.csv", "test/a/1.csv"],  # noqa: E501
     ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/odd_name-00000-of-00001.csv"]],
    ids=["names", "folders", "shards"],
)  # fmt: skip
def test_files_belong_to_the_splits_that_datasets_finds(names: list[str]) -> None:
    """Another choice would train on the rows of a test split."""
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    for name in names:
        filesystem.pipe(f"/split/{name}", b"x")
    expected: dict[str, set[str]] = {}
    for split, found in datasets.data_files.get_data_patterns("memory://split").items():
        listed = datasets.data_files.DataFilesList.from_patterns(found, base_path="memory://split")
        expected[str(split)] = {file.removeprefix("memory://").lstrip("/").removeprefix("split/") for file in listed}
    assert len(expected) > 1
    for split, files in expected.items():
        chosen = find_in_folder(filesystem, "/split", split, lambda name: True, "data.train", "memory://split")
        assert {name.removeprefix("/split/") for name in chosen} == files, split


def test_a_folder_of_several_splits_is_asked_for_one(folder: tuple[Any, str]) -> None:
    filesystem, root = folder
    for name in ("train-1.csv", "train-2.csv", "test.csv"):
        filesystem.pipe(f"{root}/{name}", b"x")

    def find(split: str | None) -> list[str]:
        return find_in_folder(filesystem, root, split, lambda name: True, "data.train", "memory://split")

    assert find("train") == [f"{root}/train-1.csv", f"{root}/train-2.csv"]
    with pytest.raises(
        InputError,
        match=r"data.train: holds the splits .*\(memory://split\). Choose one: memory://split:\w+ or memory://split:\w+",
    ):
        find(None)
    with pytest.raises(InputError, match="has no split 'tran' .* Did you mean 'train'"):
        find("tran")
    assert split_spec(filesystem, "memory://split:train") == ("memory://split", "train")
    assert split_spec(filesystem, "memory://split/train-1.csv:x") == ("memory://split/train-1.csv:x", None)


def test_a_saved_dataset_is_the_files_it_names(folder: tuple[Any, str]) -> None:
    filesystem, root = folder
    filesystem.pipe(f"{root}/dataset_dict.json", b'{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        filesystem.pipe(
            f"{root}/{split}/state.json", b'{"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}'
        )
        for name in ("a.arrow", "b.arrow", "cache-0.arrow"):
            filesystem.pipe(f"{root}/{split}/{name}", b"x")
    saved = [f"{root}/train/b.arrow", f"{root}/train/a.arrow"]
    assert find_in_folder(filesystem, root, "train", lambda name: True, "", root) == saved, (
        "in the order in which they were saved"
    )
    with pytest.raises(InputError, match="is one dataset, not several splits"):
        find_in_folder(filesystem, f"{root}/train", "train", lambda name: True, "", f"{root}/train")
    names = [f"{root}/train/{name}" for name in ("a.arrow", "b.arrow", "cache-0.arrow", "x.csv")]
    assert without_stale(filesystem, names) == [*names[:2], names[3]]


# the hub


@pytest.mark.parametrize(
    ("spec", "asked", "split"),
    [("hf://imdb", [("imdb", None)], "train"), ("hf://nyu-mll/glue/mrpc:test", [("nyu-mll/glue", "mrpc")], "test"),
     ("hf://glue/mrpc", [("glue/mrpc", None), ("glue", "mrpc")], "train")],
)  # fmt: skip
def test_a_name_of_the_hub_means_dataset_config_and_split(
    monkeypatch: pytest.MonkeyPatch, spec: str, asked: list[Any], split: str
) -> None:
    heard = []

    def data_files(path: str, config: str | None) -> dict[str, list[str]]:
        heard.append((path, config))
        if (path, config) != asked[-1]:
            raise FileNotFoundError("no such dataset")
        return {"train": ["train"], "test": ["test"]}

    monkeypatch.setattr(hub_datasets, "_data_files", data_files)
    assert find_dataset_files(spec, "data.train") == [split] and heard == asked


@pytest.mark.parametrize(
    ("spec", "line"),
    [("hf://a/b/c/d", r"is not hf://DATASET/CONFIG:SPLIT \(hf://a/b/c/d\)"), ("hf://", "is not hf://DATASET"), ("hf://x/y:val", r"has no split 'val' .* "  # noqa: E501
                                                                                                                                r"train, test"),  # noqa: E501
     ("hf://gone/gone", r"cannot be read from the hub \(hf://gone/gone: no such dataset\)"), ("hf://down/down", r"ConnectionError|no network")],  # noqa: E501
)  # fmt: skip
def test_what_the_hub_does_not_give_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, spec: str, line: str) -> None:
    def data_files(path: str, config: str | None) -> dict[str, list[str]]:
        if path.startswith("x"):
            return {"train": [], "test": []}
        raise FileNotFoundError("no such\ndataset.") if path.startswith("gone") else ConnectionError("no network")

    monkeypatch.setattr(hub_datasets, "_data_files", data_files)
    with pytest.raises(InputError, match=line) as caught:
        find_dataset_files(spec, "data.validation")
    assert str(caught.value).startswith("data.validation: ") and "\n" not in str(caught.value)
