"""Files found, cut into pieces and read: every row exactly once and in order, every bad row with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from row_files import FORMATS, ROWS, TEXTS, arrow_of, csv_of, jsonl_of, odd_lines, parquet_of, problem, read, values

from raytrain_nlp.data.reading import readers, sources
from raytrain_nlp.data.reading.files import fingerprint_files
from raytrain_nlp.data.reading.readers import BadRow, Row, read_rows
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.errors import InputError


def bad(*specs: str | Path) -> list[tuple[int, str]]:
    """Bad rows as (line from 1, reason)."""
    return [(row.line + 1, row.reason) for row in read(*specs) if isinstance(row, BadRow)]


# formats


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
def test_format_is_read_as_it_was_written(tmp_path: Path, name: str, packed: str) -> None:
    """Every format gives the rows that were written, in order: quoted line breaks, tabs, BOM, blank lines, CRLF; also
    gzipped.
    """
    content, expected = FORMATS[name]
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert values(path) == expected


def test_gzip_larger_than_its_file_is_read_to_the_end(tmp_path: Path) -> None:
    """A compressed file is cut by nothing: all rows come, although it holds more bytes than it takes."""
    expected = [{"text": "x" * 50 + str(i)} for i in range(3000)]
    for name in ("a.jsonl.gz", "a.jsonl.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(jsonl_of(expected)))
        assert (tmp_path / name).stat().st_size < len(jsonl_of(expected)) / 5
        assert values(tmp_path / name) == expected


def test_suffix_in_capitals_is_known(tmp_path: Path) -> None:
    """`.JSONL` and `.CSV` are the formats they say."""
    (tmp_path / "A.JSONL").write_bytes(jsonl_of(ROWS))
    (tmp_path / "B.CSV").write_bytes(csv_of(ROWS))
    assert values(tmp_path / "A.JSONL", tmp_path / "B.CSV") == ROWS + TEXTS


def test_long_csv_field_is_one_field(tmp_path: Path) -> None:
    """A text of a megabyte, with line breaks and commas in it, is a cell like any other; the rows behind it are
    untouched.
    """
    long = [{"text": "word, \n" * 150_000, "label": "a"}, {"text": "next", "label": "b"}]
    (tmp_path / "a.csv").write_bytes(csv_of(long))
    assert values(tmp_path / "a.csv") == long


# which files


def test_order_of_files_is_stable(tmp_path: Path) -> None:
    """Globs and folders give files by name, lists give them as listed, and a list may hold any of them."""
    for name in ("b", "a", "c", "sub/d"):
        (tmp_path / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl_of([{"text": name}]))
    names = lambda *specs: [row["text"] for row in values(*specs)]  # noqa: E731
    assert names(tmp_path / "*.jsonl") == ["a", "b", "c"]
    assert names(tmp_path / "[bc].jsonl") == ["b", "c"]
    assert names(tmp_path / "**/*.jsonl") == ["a", "b", "c", "sub/d"]
    assert names(tmp_path) == ["a", "b", "c", "sub/d"]
    assert names(f"{tmp_path}/") == ["a", "b", "c", "sub/d"]
    assert names(tmp_path / "c.jsonl", tmp_path / "sub", tmp_path / "a*") == ["c", "sub/d", "a"]


def test_folder_leaves_out_what_is_no_data(tmp_path: Path) -> None:
    """Of a folder, hidden files and folders, files of other formats and what `save_to_disk` writes beside its data are
    left out.
    """
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(arrow_of(ROWS, stream=True))
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
    (tmp_path / ".cache" / "a.jsonl").write_bytes(jsonl_of(ROWS))
    assert values(tmp_path / ".cache") == ROWS


def test_name_with_glob_signs_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    """`a[1].jsonl` names the file of that name before it is a pattern."""
    (tmp_path / "a[1].jsonl").write_bytes(jsonl_of(ROWS[:1]))
    (tmp_path / "a1.jsonl").write_bytes(jsonl_of(ROWS[1:2]))
    assert values(tmp_path / "a[1].jsonl") == ROWS[:1]


def test_url_of_a_local_file_is_a_file(tmp_path: Path) -> None:
    """`file://` works like the plain path."""
    (tmp_path / "a.jsonl").write_bytes(jsonl_of(ROWS))
    assert values((tmp_path / "a.jsonl").as_uri()) == ROWS


def test_every_missing_file_is_told_at_once(tmp_path: Path) -> None:
    """Each source that cannot be used is one line with its reason; a near name is suggested."""
    (tmp_path / "train.jsonl").write_bytes(jsonl_of(ROWS))
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
        (tmp_path / name).write_bytes(jsonl_of(rows))
    prints = {
        name: fingerprint_files(find_files([str(tmp_path / name)], "x"))
        for name in ("a.jsonl", "b.jsonl", "c.jsonl", "a.txt")
    }
    both = [
        fingerprint_files(find_files([str(tmp_path / name) for name in names], "x"))
        for names in (("a.jsonl", "c.jsonl"), ("c.jsonl", "a.jsonl"))
    ]
    assert prints["a.jsonl"] == prints["b.jsonl"]
    assert prints["a.jsonl"] != prints["c.jsonl"]
    assert prints["a.jsonl"] != prints["a.txt"]
    assert both[0] != both[1]


# pieces


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["newline at the end", "none at the end"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_pieces_hold_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str, last: bool
) -> None:
    """However a file is cut, its pieces together hold its rows, each once and in order: any piece size, from one byte
    on.
    """
    rows = [{"text": line} for line in odd_lines(1)]
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
    """In a piece, lines are numbered from its first, blank ones counted: the pieces' lines add up to the lines of the
    file.
    """
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
    (tmp_path / "a.parquet").write_bytes(parquet_of(rows, group=7))
    monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
    (file,) = find_files([str(tmp_path / "a.parquet")], "x")
    pieces = list(split_file(file))
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == 15
    assert len(pieces) in pieces_wanted
    assert values(tmp_path / "a.parquet") == rows


def test_line_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line longer than the limit is a bad row or several, never unbounded memory; the rows around it are read."""
    (tmp_path / "a.jsonl").write_bytes(jsonl_of([{"text": "a"}, {"text": "x" * 5000}, {"text": "b"}]))
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    rows = read(tmp_path / "a.jsonl")
    assert [row.values["text"] for row in rows if isinstance(row, Row)] == ["a", "b"]
    assert len(rows) > 2
    assert all(len(row.text) <= 500 for row in rows if isinstance(row, BadRow))


# bad rows


def test_bad_lines_of_jsonl_have_their_number_and_reason(tmp_path: Path) -> None:
    """Not JSON, not an object, not UTF-8, nested without end: each is told at its line; the good rows around them
    stay.
    """
    good = b'{"text": "ok"}\n'
    wrong = [
        b'{"text": \n',
        b"[1, 2]\n",
        b'"text"\n',
        b"null\n",
        b'{"text": "caf\xe9"}\n',
        b"[" * 5000 + b"\n",
        b"nonsense",
    ]
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
    assert [reason.startswith(start) for (_, reason), start in zip(told, [*starts, "not JSON ("], strict=True)] == [
        True
    ] * 7
    assert [row.values for row in read(tmp_path / "a.jsonl") if isinstance(row, Row)] == [{"text": "ok"}] * 7


def test_bad_lines_of_text_have_their_number(tmp_path: Path) -> None:
    """A line of text that is not UTF-8 is told at its line and byte; blank lines are no rows."""
    (tmp_path / "a.txt").write_bytes(b"one\n\ncaf\xe9\nfour\n\xff\n")
    assert values(tmp_path / "a.txt")[::2] == [{"text": "one"}, {"text": "four"}]
    told = bad(tmp_path / "a.txt")
    assert [(line, reason.split(" (")[0]) for line, reason in told] == [
        (3, "not UTF-8 at byte 3"),
        (5, "not UTF-8 at byte 0"),
    ]
    assert "0xe9: Latin-1 or Windows-1252?" in told[0][1]


def test_bad_rows_of_csv_have_the_line_they_begin_on(tmp_path: Path) -> None:
    """Too few or too many fields and bytes that are not UTF-8 are told at the line the row begins on, behind quoted
    line breaks too.
    """
    lines = [
        b"text,label", b'"two', b'lines",a', b"few", b"too,many,fields", b"", b"caf\xe9,b", b'"x', b'y",c,d', b"last,e",
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    told = bad(tmp_path / "a.csv")
    assert told[:2] == [(4, "1 fields where the header has 2"), (5, "3 fields where the header has 2")]
    assert told[2][0] == 7 and told[2][1].startswith("not UTF-8 (0xe9: Latin-1")
    assert told[3:] == [
        (8, "3 fields where the header has 2"),
        (9, "inside the row of line 8, by a quote left open there"),
    ]
    good = [(row.line + 1, row.values) for row in read(tmp_path / "a.csv") if isinstance(row, Row)]
    assert good == [(2, {"text": "two\r\nlines", "label": "a"}), (10, {"text": "last", "label": "e"})]


def test_open_quote_of_csv_costs_no_row_silently(tmp_path: Path) -> None:
    """A quote that is never closed takes the rest of the file with it: every line of the rest is told, not one row for
    all.
    """
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
    assert bad(tmp_path / "a.json") == [(2, "not a JSON object but int"), (4, "not a JSON object but NoneType")]
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
    assert [row.values["text"] for row in read(tmp_path / "a.arrow") if isinstance(row, Row)] == [
        "a",
        "b",
        "c",
        "a",
        "c",
    ]


# damaged files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"no parquet"),
        ("a.parquet", parquet_of(ROWS)[:-20]),
        ("a.arrow", b"no arrow"),
        ("a.arrow", arrow_of(ROWS, stream=False)[:-30]),
        ("a.arrow", arrow_of(ROWS, stream=True)[:-200]),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.gz", gzip.compress(jsonl_of(ROWS))[:-12]),
        ("a.csv.gz", gzip.compress(csv_of(ROWS))[:-9]),
        ("a.txt.gz", gzip.compress(b"x" * 100)[:-5] + b"12345"),
    ],
)
def test_damaged_file_is_told_and_not_read_in_part(tmp_path: Path, name: str, content: bytes) -> None:
    """A file that is cut off or not what its suffix says ends with one line naming it: its rest is never left out
    silently.
    """
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
