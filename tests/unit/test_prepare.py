"""From files to committed tokens: what is bad is told at its file and line, what is good is what the tokenizer says,
all or nothing.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from raytrain_nlp.config.model import TokenizerTraining
from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.data import encode
from raytrain_nlp.data.piece_summary import PieceSummary
from raytrain_nlp.data.prepare import QUARANTINE, find_tokens, prepare_tokens
from raytrain_nlp.data.reading import sources
from raytrain_nlp.data.reading.sources import find_files
from raytrain_nlp.data.shards import TokenStore
from raytrain_nlp.data.tokenize import PrepareSpec
from raytrain_nlp.errors import InputError
from raytrain_nlp.modeling.tokenizer import train_tokenizer
from raytrain_nlp.tasks.base import Lengths

MAX_LENGTH = 12
TEXTS = [
    f"the {animal} runs over {count} hills"
    for animal in ("fox", "cat", "zebra", "snail")
    for count in ("two", "seven", "no")
]
GOOD = [{"text": text, "label": number % 3} for number, text in enumerate(TEXTS)]
ODD = [
    "the",
    "unseen wörds \U0001f40d",
    "a" * 500,
    " leading",
    "the fox " * 40,
    "lone \ud800 surrogate",
    "tab\tand \u2028 separators",
]
BAD = [
    (b'{"text": "cut off', "not JSON ("),
    (b"[1]", "not a JSON object but list"),
    (b'{"text": "caf\xe9", "label": 0}', "not UTF-8 at byte 13"),
    (b'{"label": 0}', "field 'text' is missing"),
    (b'{"text": null, "label": 0}', "field 'text' is null"),
    (b'{"text": 5, "label": 0}', "field 'text' is int, not text"),
    (b'{"text": ["a"], "label": 0}', "field 'text' is list, not text"),
    (b'{"text": "", "label": 0}', "field 'text' is empty"),
    (b'{"text": " \\t\\n", "label": 0}', "field 'text' is empty"),
    (b'{"text": "no label"}', "field 'label' is missing"),
    (b'{"text": "\\ud800 no label"}', "field 'label' is missing"),
    (b'{"text": "a", "label": null}', "field 'label' is null or empty"),
    (b'{"text": "a", "label": ""}', "field 'label' is null or empty"),
    (
        b'{"text": "a", "label": 0.5}',
        "field 'label' is float, not an integer or text (numbers: task.problem_type: regression)",
    ),
    (b'{"text": "a", "label": {}}', "field 'label' is dict, not an integer or text"),
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(
        TEXTS, TokenizerTraining(vocab_size=300), "encoder", "key", tmp_path_factory.mktemp("tokenizers"), MAX_LENGTH
    )


@pytest.fixture
def spec(tokenizer_dir: Path) -> Callable[..., PrepareSpec]:
    """A spec of the tests' tokenizer; give what differs."""

    def build(max_bad_rows: float = 1000, columns: tuple[str, ...] = ("text",), **task: Any) -> PrepareSpec:
        config = TextClassification(type="text-classification", text_columns=list(columns), **task)
        return PrepareSpec(config, str(tokenizer_dir), tokenizer_dir.name, Lengths(MAX_LENGTH), max_bad_rows)

    return build


def write(path: Path, rows: Iterable[dict[str, Any] | bytes]) -> Path:
    """JSON Lines; bytes are written as they are."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def prepared(folder: Path, spec: PrepareSpec, *paths: Path, map_pieces: Any = map) -> TokenStore:
    return TokenStore(
        prepare_tokens(find_files([str(path) for path in paths], "data.train"), spec, folder, map_pieces, "data.train")
    )


def quarantine(store: TokenStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.folder / QUARANTINE).read_text(encoding="utf-8").splitlines()]


def everything(store: TokenStore) -> list[tuple[Any, ...]]:
    """Every row of a store as plain values: tokens, label, place, length."""
    rows = np.arange(store.num_rows)
    columns = store.fetch(rows) if store.num_rows else {}
    plain = [tuple((name, np.asarray(columns[name][i]).tolist()) for name in sorted(columns)) for i in rows]
    return [(*plain[i], store.locate(int(i)), int(store.lengths[i])) for i in rows]


# quarantine


def test_bad_rows_are_told_at_file_line_and_reason(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Each kind of bad row is in the quarantine once, with the file, line and reason of a hand-made list; all others
    are tokenized.
    """
    rows: list[Any] = []
    expected = []
    for number, (line, reason) in enumerate(BAD):
        rows += [GOOD[number % len(GOOD)], b"" if number % 2 else b"  ", line]
        expected.append((len(rows), reason, line))
    path = write(tmp_path / "a.jsonl", rows)
    store = prepared(tmp_path / "tokens", spec(), path)
    told = quarantine(store)
    assert [(entry["source"], entry["line"]) for entry in told] == [(str(path), line) for line, _, _ in expected]
    assert [entry["reason"].startswith(reason) for entry, (_, reason, _) in zip(told, expected, strict=True)] == [
        True
    ] * len(BAD)
    assert (store.num_rows, store.manifest["bad_rows"]) == (len(BAD), len(BAD))
    assert [store.locate(i) for i in range(len(BAD))] == [(str(path), 3 * i + 1) for i in range(len(BAD))]


def test_quarantine_shows_the_row(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """The entry of a bad row holds its beginning as text, whatever bytes it is made of."""
    rows = [GOOD[0], BAD[2][0], {"text": None, "label": "ü"}, b'{"text": "\\ud800"}', b"{" + b"x" * 9000]
    told = [
        entry["row"] for entry in quarantine(prepared(tmp_path / "tokens", spec(), write(tmp_path / "a.jsonl", rows)))
    ]
    assert told[:3] == ['{"text": "caf\\xe9", "label": 0}', '{"text": null, "label": "ü"}', '{"text": "\\ud800"}']
    assert told[3] == "{" + "x" * 499


def test_lines_count_in_csv_and_parquet(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """A CSV row is told at the line it begins on, header and quoted line breaks counted; a Parquet row by its number
    from 1.
    """
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), ("two\nlines", "x"), ("", "y"), ("fine", ""), ("good", "z")])
    table = pa.table({"text": ["a", None, "c", ""], "label": [1, 1, None, 1]})
    parquet.write_table(table, tmp_path / "b.parquet", row_group_size=1)
    store = prepared(tmp_path / "tokens", spec(), tmp_path / "a.csv", tmp_path / "b.parquet")
    assert [(Path(entry["source"]).name, entry["line"], entry["reason"]) for entry in quarantine(store)] == [
        ("a.csv", 4, "field 'text' is empty"),
        ("a.csv", 5, "field 'label' is null or empty"),
        ("b.parquet", 2, "field 'text' is null"),
        ("b.parquet", 3, "field 'label' is null or empty"),
        ("b.parquet", 4, "field 'text' is empty"),
    ]
    assert [(Path(path).name, line) for path, line in map(store.locate, range(3))] == [
        ("a.csv", 2),
        ("a.csv", 6),
        ("b.parquet", 1),
    ]
    assert store.manifest["labels"] == {"x": 1, "z": 1, "1": 1}


def test_label_outside_the_given_names_is_bad(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Where the job names all labels, a row with another one is told."""
    rows = [{"text": "a", "label": label} for label in ("yes", "no", "maybe", "yes ")]
    store = prepared(tmp_path / "tokens", spec(label_names=["no", "yes"]), write(tmp_path / "a.jsonl", rows))
    assert [(entry["line"], entry["reason"]) for entry in quarantine(store)] == [
        (3, "field 'label' has label 'maybe', which is none of the names (no, yes)")
    ]
    assert store.column("label").tolist() == ["yes", "no", "yes"]


@pytest.mark.parametrize(
    ("limit", "good", "bad", "taken"),
    [
        (0.2, 8, 2, True), (0.19, 8, 2, False), (0.29, 71, 29, True), (0, 9, 1, False), (0, 9, 0, True), (0.999, 1, 9, True),  # noqa: E501
        (2, 1, 2, True), (1, 8, 2, False), (1, 8, 1, True), (100, 0, 3, False),
    ],
)  # fmt: skip
def test_too_many_bad_rows_end_it(
    tmp_path: Path, spec: Callable[..., PrepareSpec], limit: float, good: int, bad: int, taken: bool
) -> None:
    """Below 1 the limit is a share of all rows, from 1 on a number; the first bad row is told, and nothing is committed
    beyond it.
    """
    path = write(tmp_path / "a.jsonl", [GOOD[i % len(GOOD)] for i in range(good)] + [b"bad"] * bad)
    if taken:
        store = prepared(tmp_path / "tokens", spec(limit), path)
        assert (store.num_rows, store.manifest["bad_rows"]) == (good, bad)
        return
    with pytest.raises(InputError) as caught:
        prepared(tmp_path / "tokens", spec(limit), path)
    start = (
        f"data.train: {bad} of {good + bad} rows are bad, more than data.max_bad_rows ({limit:g}); the first: "
        f"{path}:{good + 1}: not JSON ("
    )
    assert str(caught.value).startswith(start)
    assert list((tmp_path).iterdir()) == [path]


def test_stricter_limit_counts_for_tokens_found_too(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Tokens that a lenient job has committed are refused to a strict one, with the same line."""
    path = write(tmp_path / "a.jsonl", [*GOOD, b"bad"])
    prepared(tmp_path / "tokens", spec(1), path)
    with pytest.raises(InputError, match="1 of 13 rows are bad"):
        prepared(tmp_path / "tokens", spec(0.01), path)
    assert find_tokens(tmp_path / "tokens") == tmp_path / "tokens"


def test_file_without_rows_is_told(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Blank lines only are no rows."""
    with pytest.raises(InputError, match=r"^data\.train: has no rows\. Give a file with rows\.$"):
        prepared(tmp_path / "tokens", spec(), write(tmp_path / "a.jsonl", [b"", b" "]))


# tokens


@pytest.mark.parametrize("columns", [("text",), ("text", "second")])
def test_tokens_are_what_the_tokenizer_says(
    tmp_path: Path, spec: Callable[..., PrepareSpec], tokenizer_dir: Path, columns: tuple[str, ...]
) -> None:
    """Tokens, types, lengths, labels and places of a store equal those of the Hugging Face tokenizer called on each
    text alone.
    """
    from transformers import AutoTokenizer

    texts = [*TEXTS, *ODD]
    rows = [
        {"text": text, "second": second, "label": number % 3}
        for number, (text, second) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    store = prepared(tmp_path / "tokens", spec(columns=columns), write(tmp_path / "a.jsonl", rows))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    clean = [[str(row[column]).replace("\ud800", "?") for column in columns] for row in rows]
    truth = [tokenizer(*row, truncation=True, max_length=MAX_LENGTH) for row in clean]
    order = np.random.default_rng(0).permutation(len(rows))
    fetched = store.fetch(order)
    assert set(fetched) == {"input_ids", "token_type_ids", "label"}
    for name in ("input_ids", "token_type_ids"):
        assert [row.tolist() for row in fetched[name]] == [list(truth[i][name]) for i in order]
    assert fetched["label"] == [str(rows[i]["label"]) for i in order]
    assert store.lengths.tolist() == [len(row["input_ids"]) for row in truth]
    assert max(store.lengths) == MAX_LENGTH and min(store.lengths) < MAX_LENGTH
    assert len({token for row in truth for token in row["input_ids"]}) > 20
    assert [store.locate(i)[1] for i in range(len(rows))] == list(range(1, len(rows) + 1))
    assert store.manifest["tokens"] == sum(len(row["input_ids"]) for row in truth)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_any_number_of_pieces_and_shards_gives_the_same(
    tmp_path: Path, spec: Callable[..., PrepareSpec], monkeypatch: pytest.MonkeyPatch, ending: bytes
) -> None:
    """Two files in many pieces and small shards give the rows, places, labels and quarantine of one piece each."""
    rows: list[Any] = [
        row
        for number, good in enumerate(GOOD)
        for row in (good, b"", BAD[number % 5][0], b"", b"", {"text": ODD[number % 5], "label": "x"})
    ]
    for name, part in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        path = write(tmp_path / name, part)
        path.write_bytes(path.read_bytes().replace(b"\n", ending))
    paths = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    one = prepared(tmp_path / "one", spec(), *paths)
    assert (one.num_rows, one.manifest["bad_rows"], len(one.manifest["shards"])) == (48, 24, 2)
    for piece_bytes, shard_rows, encode_rows in ((1 << 20, 5, 2), (700, 3, 2), (90, 1000, 1000), (25, 1, 1)):
        monkeypatch.setattr(sources, "PIECE_BYTES", piece_bytes)
        monkeypatch.setattr(encode, "SHARD_ROWS", shard_rows)
        monkeypatch.setattr(encode, "_ENCODE_ROWS", encode_rows)
        many = prepared(tmp_path / f"many-{piece_bytes}", spec(), *paths)
        assert len(many.manifest["shards"]) >= 8
        assert everything(many) == everything(one)
        assert quarantine(many) == quarantine(one)
        assert {**many.manifest, "shards": None} == {**one.manifest, "shards": None}


def test_key_follows_all_that_tokens_depend_on(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Another text, column, length or tokenizer is another key; another path, name or limit of bad rows is not."""
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b.jsonl", GOOD[1:])
    files, others = ([*find_files([str(tmp_path / name)], "x")] for name in ("a.jsonl", "b.jsonl"))
    moved = find_files([str(shutil.copy(tmp_path / "a.jsonl", tmp_path / "c.jsonl"))], "x")
    base = spec()
    same = [base.key(files), base.key(moved), spec(0.5).key(files)]
    changed = [
        base.key(others),
        base.key([*files, *files]),
        spec(columns=("second",)).key(files),
        spec(label_column="l").key(files),
        PrepareSpec(base.task, "", "other", Lengths(MAX_LENGTH), 1).key(files),
        PrepareSpec(base.task, "", base.tokenizer_fingerprint, Lengths(13), 1).key(files),
    ]
    assert len(set(same)) == 1
    assert len({*same, *changed}) == 1 + len(changed)


# all or nothing


def test_second_call_reads_nothing(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Committed tokens are found again although the source is gone, and no piece is mapped."""
    path = write(tmp_path / "a.jsonl", GOOD)
    files = find_files([str(path)], "data.train")
    calls: list[int] = []

    def counting(function: Any, items: list[Any]) -> Iterator[Any]:
        calls.append(len(items))
        return map(function, items)

    first = prepare_tokens(files, spec(), tmp_path / "tokens", counting, "data.train")
    before = everything(TokenStore(first))
    path.unlink()
    second = prepare_tokens(files, spec(), tmp_path / "tokens", counting, "data.train")
    assert calls == [1]
    assert everything(TokenStore(second)) == before


def _fails_at_first(function: Any, items: list[Any]) -> Iterator[Any]:
    raise KeyboardInterrupt
    yield


def _fails_half_way(function: Any, items: list[Any]) -> Iterator[Any]:
    yield function(items[0])
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", [_fails_at_first, _fails_half_way])
def test_interrupted_preparation_leaves_nothing(
    tmp_path: Path, spec: Callable[..., PrepareSpec], interrupted: Any
) -> None:
    """Stopped while pieces are mapped: no tokens are found, the staging folder is gone, and the next call makes
    them.
    """
    paths = [write(tmp_path / name, GOOD) for name in ("a.jsonl", "b.jsonl")]
    folder = tmp_path / "cache" / "tokens"
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, spec(), *paths, map_pieces=interrupted)
    assert find_tokens(folder) is None
    assert list(folder.parent.iterdir()) == []
    assert prepared(folder, spec(), *paths).num_rows == 24


def test_kill_before_the_rename_leaves_no_tokens(
    tmp_path: Path, spec: Callable[..., PrepareSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed when all is written but not renamed has committed nothing; the next one starts from the
    files.
    """
    path = write(tmp_path / "a.jsonl", GOOD)
    folder = tmp_path / "cache" / "tokens"
    child = os.fork()
    if not child:  # the process that is killed
        monkeypatch.setattr(Path, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        prepared(folder, spec(), path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (staging,) = folder.parent.iterdir()
    assert (staging / "manifest.json").exists()
    assert find_tokens(folder) is None
    assert everything(prepared(folder, spec(), path)) == everything(prepared(tmp_path / "other", spec(), path))


def test_damaged_file_is_told_from_wherever_it_is_read(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """A file damaged far behind its first rows is one line with its name, also where exceptions do not come back as
    they were raised.
    """
    rows = [{"text": os.urandom(20).hex(), "label": number % 2} for number in range(400)]
    content = gzip.compress(write(tmp_path / "whole.jsonl", rows).read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])

    def remote(function: Any, items: list[Any]) -> Iterator[Any]:
        for item in items:
            try:
                result = function(item)
            except Exception as error:
                raise RuntimeError("raised by a remote function") from error
            yield json.loads(json.dumps(result))

    for map_pieces in (map, remote):
        with pytest.raises(InputError) as caught:
            prepared(
                tmp_path / "cache" / "tokens",
                spec(),
                tmp_path / "whole.jsonl",
                tmp_path / "cut.jsonl.gz",
                map_pieces=map_pieces,
            )
        assert [problem.where for problem in caught.value.problems] == [str(tmp_path / "cut.jsonl.gz")]
        assert "cannot be read as jsonl (EOFError" in str(caught.value)
        assert list((tmp_path / "cache").iterdir()) == []


def test_two_that_prepare_the_same_agree(tmp_path: Path, spec: Callable[..., PrepareSpec]) -> None:
    """Where another driver commits the same tokens meanwhile, its folder is used and nothing is left behind."""
    path = write(tmp_path / "a.jsonl", GOOD)
    folder = tmp_path / "cache" / "tokens"

    def overtaken(function: Any, items: list[Any]) -> Iterator[Any]:
        yield from map(function, items)
        prepared(folder, spec(), path)

    store = prepared(folder, spec(), path, map_pieces=overtaken)
    assert store.num_rows == 12
    assert list(folder.parent.iterdir()) == [folder]


def test_the_driver_joins_the_lengths_and_the_bad_rows_of_a_piece() -> None:
    summary = PieceSummary("rows.jsonl", shards=[{"file": "shard-000000-0000.arrow"}], bad_file="bad-000000.jsonl")
    assert summary.parts() == ["shard-000000-0000.npy", "shard-000000-0000.crc.npy", "bad-000000.jsonl"]
    assert PieceSummary("rows.jsonl").parts() == []
