"""Files found, cut into pieces and read: every row exactly once and in order, every bad row with its line, on any storage."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from raytrain_nlp.data import readers, sources
from raytrain_nlp.data.readers import BadRow, Row, read_rows
from raytrain_nlp.data.sources import find_files, fingerprint_files, split_file
from raytrain_nlp.errors import InputError

ROWS = [
    {"text": text, "label": i % 2}
    for i, text in enumerate(["plain", "snö \u2028 \U0001f40d", 'quote " comma , tab \t', " spaces ", "line\nbreak", "=1+1"])
]
LINES = [row["text"] for row in ROWS if "\n" not in row["text"]]
TEXTS = [{"text": str(row["text"]), "label": str(row["label"])} for row in ROWS]


def _jsonl(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def _csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: list[dict[str, Any]], group: int = 2) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=group)
    return out.getvalue()


def _arrow(rows: list[dict[str, Any]], stream: bool) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


FORMATS: dict[str, tuple[bytes, list[dict[str, Any]]]] = {
    "a.jsonl": (_jsonl(ROWS), ROWS),
    "a.ndjson": (_jsonl(ROWS), ROWS),
    "bom.jsonl": (b"\xef\xbb\xbf" + _jsonl(ROWS), ROWS),
    "crlf.jsonl": (_jsonl(ROWS, "\r\n"), ROWS),
    "blank.jsonl": (b"\n \n" + _jsonl(ROWS, "\n\n") + b"\t\n", ROWS),
    "lines.json": (_jsonl(ROWS), ROWS),
    "array.json": (json.dumps(ROWS).encode(), ROWS),
    "indented.json": (b"\n" * 100 + json.dumps(ROWS, indent=2).encode(), ROWS),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), ROWS),
    "a.csv": (_csv(ROWS), TEXTS),
    "bom.csv": (b"\xef\xbb\xbf" + _csv(ROWS), TEXTS),
    "unix.csv": (b"\n".join(_csv(ROWS[:4]).split(b"\r\n")), TEXTS[:4]),
    "a.tsv": (b'text\tlabel\nan "odd quote\t0\r\nsn\xc3\xb6\t1', [{"text": 'an "odd quote', "label": "0"}, {"text": "snö", "label": "1"}]),
    "a.parquet": (_parquet(ROWS), ROWS),
    "file.arrow": (_arrow(ROWS, stream=False), ROWS),
    "file.feather": (_arrow(ROWS, stream=False), ROWS),
    "stream.arrow": (_arrow(ROWS, stream=True), ROWS),
    "a.txt": ("\n".join(LINES).encode(), [{"text": line} for line in LINES]),
}


def read(*specs: str | Path) -> list[Row | BadRow]:
    """What every piece of every file of a split holds, in order."""
    found = find_files([str(spec) for spec in specs], "data.train")
    rows = [row for file in found for piece in split_file(file) for row in read_rows(piece)]
    return [row for row in rows if isinstance(row, (Row, BadRow))]


def values(*specs: str | Path) -> list[Any]:
    return [row.values if isinstance(row, Row) else row for row in read(*specs)]


def bad(*specs: str | Path) -> list[tuple[int, str]]:
    """Bad rows as (line from 1, reason)."""
    return [(row.line + 1, row.reason) for row in read(*specs) if isinstance(row, BadRow)]


def problem(*specs: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read(*specs)
    assert len(caught.value.problems) == 1
    return str(caught.value)


# formats


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
def test_format_is_read_as_it_was_written(tmp_path: Path, name: str, packed: str) -> None:
    """Every format gives the rows that were written, in order: quoted line breaks, tabs, BOM, blank lines, CRLF; also gzipped."""
    content, expected = FORMATS[name]
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert values(path) == expected


def test_gzip_larger_than_its_file_is_read_to_the_end(tmp_path: Path) -> None:
    """A compressed file is cut by nothing: all rows come, although it holds more bytes than it takes."""
    expected = [{"text": "x" * 50 + str(i)} for i in range(3000)]
    for name in ("a.jsonl.gz", "a.jsonl.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(_jsonl(expected)))
        assert (tmp_path / name).stat().st_size < len(_jsonl(expected)) / 5
        assert values(tmp_path / name) == expected


def test_suffix_in_capitals_is_known(tmp_path: Path) -> None:
    """`.JSONL` and `.CSV` are the formats they say."""
    (tmp_path / "A.JSONL").write_bytes(_jsonl(ROWS))
    (tmp_path / "B.CSV").write_bytes(_csv(ROWS))
    assert values(tmp_path / "A.JSONL", tmp_path / "B.CSV") == ROWS + TEXTS


def test_long_csv_field_is_one_field(tmp_path: Path) -> None:
    """A text of a megabyte, with line breaks and commas in it, is a cell like any other; the rows behind it are untouched."""
    long = [{"text": "word, \n" * 150_000, "label": "a"}, {"text": "next", "label": "b"}]
    (tmp_path / "a.csv").write_bytes(_csv(long))
    assert values(tmp_path / "a.csv") == long


# which files


def test_order_of_files_is_stable(tmp_path: Path) -> None:
    """Globs and folders give files by name, lists give them as listed, and a list may hold any of them."""
    for name in ("b", "a", "c", "sub/d"):
        (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(_jsonl([{"text": name}]))
    names = lambda *specs: [row["text"] for row in values(*specs)]  # noqa: E731
    assert names(tmp_path / "*.jsonl") == ["a", "b", "c"]
    assert names(tmp_path / "[bc].jsonl") == ["b", "c"]
    assert names(tmp_path / "**/*.jsonl") == ["a", "b", "c", "sub/d"]
    assert names(tmp_path) == ["a", "b", "c", "sub/d"]
    assert names(f"{tmp_path}/") == ["a", "b", "c", "sub/d"]
    assert names(tmp_path / "c.jsonl", tmp_path / "sub", tmp_path / "a*") == ["c", "sub/d", "a"]


def test_folder_leaves_out_what_is_no_data(tmp_path: Path) -> None:
    """Of a folder, hidden files and folders, files of other formats and what `save_to_disk` writes beside its data are left out."""
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(_arrow(ROWS, stream=True))
    others = (
        "README.md",
        "state.json",
        "dataset_info.json",
        ".x.jsonl",
        "_SUCCESS",
        "_x.jsonl",
        ".ipynb_checkpoints/a.jsonl",
        "_temporary/0/a.jsonl",
    )
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'{"text": "no"}\n')
    assert values(tmp_path) == ROWS


def test_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    """A hidden folder is data where the job names it."""
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.jsonl").write_bytes(_jsonl(ROWS))
    assert values(tmp_path / ".cache") == ROWS


def test_name_with_glob_signs_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    """`a[1].jsonl` names the file of that name before it is a pattern."""
    (tmp_path / "a[1].jsonl").write_bytes(_jsonl(ROWS[:1]))
    (tmp_path / "a1.jsonl").write_bytes(_jsonl(ROWS[1:2]))
    assert values(tmp_path / "a[1].jsonl") == ROWS[:1]


def test_url_of_a_local_file_is_a_file(tmp_path: Path) -> None:
    """`file://` works like the plain path."""
    (tmp_path / "a.jsonl").write_bytes(_jsonl(ROWS))
    assert values((tmp_path / "a.jsonl").as_uri()) == ROWS


def test_every_missing_file_is_told_at_once(tmp_path: Path) -> None:
    """Each source that cannot be used is one line with its reason; a near name is suggested."""
    (tmp_path / "train.jsonl").write_bytes(_jsonl(ROWS))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "dangling.jsonl").symlink_to("nowhere")
    wrong = {
        f"{tmp_path}/trian.jsonl": "there is no such file or folder ({}). Did you mean 'train.jsonl'?",
        f"{tmp_path}/nothing/x.jsonl": "there is no such file or folder ({}). Check the path.",
        f"{tmp_path}/*.csv": "no file matches ({}). Correct the pattern.",
        f"{tmp_path}/folder": "the folder has no data file ({}). Known suffixes: ",
        f"{tmp_path}/empty.jsonl": "the file is empty ({}). Give a file with rows.",
        f"{tmp_path}/notes.md": "unknown file format ({}). Known suffixes: ",
        f"{tmp_path}/link/dangling.jsonl": "there is no such file or folder ({}). ",
        f"{tmp_path}/link": f"cannot be read ({tmp_path}/link/dangling.jsonl: No such file or directory)",
        "gopher://host/a.jsonl": "cannot be reached ({}: ValueError: Protocol not known: gopher",
    }
    with pytest.raises(InputError) as caught:
        find_files([str(tmp_path / "train.jsonl"), *wrong], "data.validation")
    told = [str(found) for found in caught.value.problems]
    assert len(told) == len(wrong)
    for line, (spec, what) in zip(told, wrong.items(), strict=True):
        assert line.startswith(f"data.validation: {what.format(spec)}")


def test_fingerprint_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    """Equal content under another name is the same data; another byte, order, or format is not."""
    for name, rows in {"a.jsonl": ROWS, "b.jsonl": ROWS, "c.jsonl": ROWS[::-1], "a.txt": ROWS}.items():
        (tmp_path / name).write_bytes(_jsonl(rows))
    prints = {name: fingerprint_files(find_files([str(tmp_path / name)], "x")) for name in ("a.jsonl", "b.jsonl", "c.jsonl", "a.txt")}
    both = [
        fingerprint_files(find_files([str(tmp_path / name) for name in names], "x"))
        for names in (("a.jsonl", "c.jsonl"), ("c.jsonl", "a.jsonl"))
    ]
    assert prints["a.jsonl"] == prints["b.jsonl"]
    assert prints["a.jsonl"] != prints["c.jsonl"]
    assert prints["a.jsonl"] != prints["a.txt"]
    assert both[0] != both[1]


# pieces


def _odd_lines(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["é" * draw.choice([0, 1, 2, 3, 80]) + f" {i}" for i in range(20)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["newline at the end", "none at the end"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_pieces_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str, last: bool) -> None:
    """However a file is cut, its pieces together hold its rows, each once and in order: any piece size, from one byte on."""
    rows = [{"text": line} for line in _odd_lines(1)]
    lines = [json.dumps(row, ensure_ascii=False) if kind == "jsonl" else row["text"] for row in rows]
    path = tmp_path / f"a.{kind}"
    path.write_bytes((ending.join(lines) + (ending if last else "")).encode())
    size = path.stat().st_size
    longest = max(len(line.encode()) for line in lines) + len(ending)
    for piece_bytes in [1, 2, 7, 64, longest - 1, longest, longest + 1, size - 1, size, size + 1]:
        monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
        (file,) = find_files([str(path)], "x")
        assert len(list(split_file(file))) == -(-size // piece_bytes)
        assert values(path) == rows, piece_bytes


def test_lines_of_pieces_count_all_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a piece, lines are numbered from its first, blank ones counted: the pieces' lines add up to the lines of the file."""
    text = b"".join(b'{"text": "%d"}\n' % i if i % 3 else b"\n" for i in range(50))
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    for piece_bytes in (5, 16, 40, 333):
        monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
        (file,) = find_files([str(path)], "x")
        seen = [[row.line for row in read_rows(piece)] for piece in split_file(file)]
        assert all(lines == list(range(len(lines))) for lines in seen)
        assert sum(map(len, seen)) == 50


@pytest.mark.parametrize(("piece_bytes", "pieces_wanted"), [(1, {15}), (1000, set(range(2, 15))), (1 << 30, {1})])
def test_pieces_of_parquet_are_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, pieces_wanted: set[int]
) -> None:
    """Parquet is cut between row groups; all rows come once and in order."""
    rows = [{"text": f"{'x' * (i % 40)}{i}", "label": i} for i in range(100)]
    (tmp_path / "a.parquet").write_bytes(_parquet(rows, group=7))
    monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
    (file,) = find_files([str(tmp_path / "a.parquet")], "x")
    pieces = list(split_file(file))
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == 15
    assert len(pieces) in pieces_wanted
    assert values(tmp_path / "a.parquet") == rows


def test_line_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line longer than the limit is a bad row or several, never unbounded memory; the rows around it are read."""
    (tmp_path / "a.jsonl").write_bytes(_jsonl([{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}]))
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    rows = read(tmp_path / "a.jsonl")
    assert [row.values["text"] for row in rows if isinstance(row, Row)] == ["a", "b"]
    assert len(rows) > 2
    assert all(len(row.text) <= 500 for row in rows if isinstance(row, BadRow))


# bad rows


def test_bad_lines_of_jsonl_have_their_number_and_reason(tmp_path: Path) -> None:
    """Not JSON, not an object, not UTF-8, nested without end: each is told at its line; the good rows around them stay."""
    good = b'{"text": "ok"}\n'
    wrong = [b'{"text": \n', b"[1, 2]\n", b'"text"\n', b"null\n", b'{"text": "caf\xe9"}\n', b"[" * 5000 + b"\n", b"nonsense"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good] + [line + good for line in wrong[:-1]]) + wrong[-1])
    content = (tmp_path / "a.jsonl").read_bytes().split(b"\n")
    told = bad(tmp_path / "a.jsonl")
    assert [content[line - 1] + b"\n" for line, _ in told[:-1]] == wrong[:-1]
    assert content[told[-1][0] - 1] == wrong[-1]
    starts = [
        "not JSON (",
        "not a JSON object but list",
        "not a JSON object but str",
        "not a JSON object but NoneType",
        "not UTF-8 at byte 13",
        "not JSON (",
    ]
    assert [reason.startswith(start) for (_, reason), start in zip(told, [*starts, "not JSON ("], strict=True)] == [True] * 7
    assert [row.values for row in read(tmp_path / "a.jsonl") if isinstance(row, Row)] == [{"text": "ok"}] * 7


def test_bad_lines_of_text_have_their_number(tmp_path: Path) -> None:
    """A line of text that is not UTF-8 is told at its line and byte; blank lines are no rows."""
    (tmp_path / "a.txt").write_bytes(b"one\n\ncaf\xe9\nfour\n\xff\n")
    assert values(tmp_path / "a.txt")[::2] == [{"text": "one"}, {"text": "four"}]
    assert bad(tmp_path / "a.txt") == [(3, "not UTF-8 at byte 3"), (5, "not UTF-8 at byte 0")]


def test_bad_rows_of_csv_have_the_line_they_begin_on(tmp_path: Path) -> None:
    """Too few or too many fields and bytes that are not UTF-8 are told at the line the row begins on, behind quoted line breaks too."""
    lines = [
        b"text,label", b'"two', b'lines",a', b"few", b"too,many,fields", b"", b"caf\xe9,b", b'"x', b'y",c,d', b"last,e",
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    told = bad(tmp_path / "a.csv")
    assert told[:3] == [(4, "1 fields where the header has 2"), (5, "3 fields where the header has 2"), (7, "not UTF-8")]
    assert told[3:] == [(8, "3 fields where the header has 2"), (9, "inside the row of line 8, by a quote left open there")]
    good = [(row.line + 1, row.values) for row in read(tmp_path / "a.csv") if isinstance(row, Row)]
    assert good == [(2, {"text": "two\r\nlines", "label": "a"}), (10, {"text": "last", "label": "e"})]


def test_open_quote_of_csv_costs_no_row_silently(tmp_path: Path) -> None:
    """A quote that is never closed takes the rest of the file with it: every line of the rest is told, not one row for all."""
    rows = [f"row {i},x" for i in range(100)]
    rows[60] = '"row 60,x'
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    assert [line for line, _ in bad(tmp_path / "a.csv")] == list(range(62, 102))
    assert len(read(tmp_path / "a.csv")) == 100


def test_tsv_counts_fields_and_ignores_quotes(tmp_path: Path) -> None:
    """In TSV a quote is a character like any other (as in GLUE's files): it can hide no line."""
    (tmp_path / "a.tsv").write_bytes(b'text\tlabel\n"open\t0\nfew\nfine"\t1\n')
    assert bad(tmp_path / "a.tsv") == [(3, "1 fields where the header has 2")]
    assert values(tmp_path / "a.tsv")[0] == {"text": '"open', "label": "0"}


def test_items_of_a_json_array_that_are_no_objects_have_their_number(tmp_path: Path) -> None:
    """In a JSON array a bad item is told by its number; an array cut off is one bad row for the file."""
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, {"text": "b"}, null]')
    (tmp_path / "b.json").write_text('[{"text": "a"}, ')
    assert bad(tmp_path / "a.json") == [(2, "not a JSON object"), (4, "not a JSON object")]
    ((line, reason),) = bad(tmp_path / "b.json")
    assert (line, reason.startswith("the whole file is not JSON (")) == (1, True)


def test_text_that_is_not_utf8_costs_one_row_of_parquet(tmp_path: Path) -> None:
    """Text columns with bytes that are no UTF-8, as other writers leave them, cost their own rows only."""
    good = pa.array(["a", "b", "c"])
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2, 3)))
    wrong = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    with (tmp_path / "a.arrow").open("wb") as out, pa.ipc.new_file(out, pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch([good], names=["text"]))
        writer.write_batch(pa.record_batch([wrong], names=["text"]))
    assert bad(tmp_path / "a.arrow") == [(5, "not UTF-8")]
    assert [row.values["text"] for row in read(tmp_path / "a.arrow") if isinstance(row, Row)] == ["a", "b", "c", "a", "c"]


# damaged files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"no parquet"),
        ("a.parquet", _parquet(ROWS)[:-20]),
        ("a.arrow", b"no arrow"),
        ("a.arrow", _arrow(ROWS, stream=False)[:-30]),
        ("a.arrow", _arrow(ROWS, stream=True)[:-200]),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.gz", gzip.compress(_jsonl(ROWS))[:-12]),
        ("a.csv.gz", gzip.compress(_csv(ROWS))[:-9]),
        ("a.txt.gz", gzip.compress(b"x" * 100)[:-5] + b"12345"),
    ],
)
def test_damaged_file_is_told_and_not_read_in_part(tmp_path: Path, name: str, content: bytes) -> None:
    """A file that is cut off or not what its suffix says ends with one line naming it: its rest is never left out silently."""
    (tmp_path / name).write_bytes(content)
    line = problem(tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: cannot be read as {name.split('.')[1].replace('txt', 'text')} (")
    assert line.endswith("Restore the file.")


def test_parquet_without_row_groups_has_no_rows(tmp_path: Path) -> None:
    """A Parquet file that holds a schema only is read as no rows."""
    schema = pa.schema({"text": pa.string()})
    parquet.ParquetWriter(tmp_path / "a.parquet", schema).close()
    assert parquet.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 0
    (file,) = find_files([str(tmp_path / "a.parquet")], "x")
    assert len(list(split_file(file))) == 1
    assert read(tmp_path / "a.parquet") == []


# object stores


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket of an S3 server on this machine, and the environment in which s3fs finds it."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server_class = pytest.importorskip("moto.server", reason="moto[server] is not installed").ThreadedMotoServer
    import logging

    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_class(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    saved = dict(os.environ)
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for name, (content, _) in FORMATS.items():
            client.put_object(Bucket="corpus", Key=f"formats/{name}", Body=content)
            client.put_object(Bucket="corpus", Key=f"packed/{name}.gz", Body=gzip.compress(content))
        yield client
    finally:
        os.environ.clear()
        os.environ.update(saved)
        server.stop()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_format_is_read_from_s3_as_from_disk(bucket: Any, name: str) -> None:
    """Every format gives the same rows from an object store, plain and gzipped."""
    assert values(f"s3://corpus/formats/{name}") == FORMATS[name][1]
    assert values(f"s3://corpus/packed/{name}.gz") == FORMATS[name][1]


def test_pieces_of_an_s3_object_hold_every_row_once(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is cut like a file: each row once, in order, at several piece sizes."""
    rows = [{"text": line} for line in _odd_lines(2)]
    bucket.put_object(Bucket="corpus", Key="pieces/a.jsonl", Body=_jsonl(rows, "\r\n"))
    for piece_bytes in (101, 1 << 20):
        monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
        assert values("s3://corpus/pieces/a.jsonl") == rows


def test_folder_glob_and_list_of_s3(bucket: Any) -> None:
    """Folders, globs and lists of an object store are files in the order of their names, with their full addresses."""
    for name in ("b", "a", ".hidden", "sub/c"):
        bucket.put_object(Bucket="corpus", Key=f"many/{name}.jsonl", Body=_jsonl([{"text": name}]))
    names = lambda spec: [file.path for file in find_files([spec], "x")]  # noqa: E731
    assert names("s3://corpus/many") == [f"s3://corpus/many/{name}.jsonl" for name in ("a", "b", "sub/c")]
    assert names("s3://corpus/many/*.jsonl")[-2:] == [f"s3://corpus/many/{name}.jsonl" for name in ("a", "b")]
    assert [row["text"] for row in values("s3://corpus/many/b.jsonl", "s3://corpus/many/a.jsonl")] == ["b", "a"]


def test_wrong_name_in_s3_is_one_line(bucket: Any) -> None:
    """A missing object (with the near name), a missing bucket and an empty object are one line each."""
    bucket.put_object(Bucket="corpus", Key="near/train.jsonl", Body=b"{}")
    bucket.put_object(Bucket="corpus", Key="near/empty.jsonl", Body=b"")
    near = "data.train: there is no such file or folder (s3://corpus/near/trian.jsonl). Did you mean 'train.jsonl'?"
    assert problem("s3://corpus/near/trian.jsonl") == near
    assert problem("s3://nothing/a.jsonl").startswith("data.train: there is no such file or folder (s3://nothing/a.jsonl).")
    assert problem("s3://corpus/near/empty.jsonl") == "data.train: the file is empty (s3://corpus/near/empty.jsonl). Give a file with rows."


def test_store_that_cannot_be_reached_is_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that refuses connections is told with its address and the reason; it is no missing file."""
    import socket

    import s3fs

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        line = problem("s3://corpus/formats/a.jsonl")
    s3fs.S3FileSystem.clear_instance_cache()
    assert line.startswith("data.train: cannot be reached (s3://corpus/formats/a.jsonl: ")
    assert line.endswith("Check address and credentials.")


def test_content_of_an_s3_object_is_known_without_reading_it(bucket: Any) -> None:
    """The store's own ETag identifies an object; a process that has listed the folder before sees it change with the content."""
    prints = []
    for body in (b"one", b"other", b"one"):
        bucket.put_object(Bucket="corpus", Key="tag/a.txt", Body=body)
        (file,) = find_files(["s3://corpus/tag"], "x")
        assert file.size == len(body)
        assert file.digest.startswith("ETag:")
        prints.append(fingerprint_files([file]))
    assert prints[0] == prints[2] != prints[1]
