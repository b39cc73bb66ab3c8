"""CoNLL files: sentences between blank lines, columns by white space or tabs, comments, and what is wrong in a line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from raytrain_nlp.config import load_job
from raytrain_nlp.data.reading.conll import read_conll
from raytrain_nlp.data.reading.rows import BadRow, Row
from raytrain_nlp.data.reading.sources import find_files, split_file
from raytrain_nlp.planning.inputs import Files, check_choice, check_columns
from raytrain_nlp.planning.label_names import name_labels

PLAIN = [
    {"tokens": ["EU", "rejects", "call"], "ner_tags": ["B-ORG", "O", "O"]},
    {"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
]


def rows_of(path: Path, content: str | bytes) -> list[Row | BadRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row for file in find_files([str(path)], "x") for piece in split_file(file) for row in read_conll(piece)]


def values_of(path: Path, content: str | bytes) -> list[dict[str, Any]]:
    found = rows_of(path, content)
    assert all(isinstance(row, Row) for row in found), found
    return [row.values for row in found if isinstance(row, Row)]


@pytest.mark.parametrize("suffix", [".conll", ".bio", ".iob", ".iob2", ".CONLL", ".conllu"])
@pytest.mark.parametrize("between", [" ", "\t", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_word_a_line_and_blank_lines_between_sentences(tmp_path: Path, suffix: str, between: str, end: str) -> None:
    lines = [*(f"{word}{between}{tag}" for row in PLAIN[:1] for word, tag in zip(row["tokens"], row["ner_tags"])), ""]
    lines += [" \t", *(f"{word}{between}{tag}" for word, tag in zip(PLAIN[1]["tokens"], PLAIN[1]["ner_tags"]))]
    for tail in ("", end, end * 3):
        assert values_of(tmp_path / f"x{suffix}", end.join(lines) + tail) == PLAIN


def test_conll_2003_as_it_is_distributed(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\n\nPeter NNP B-NP B-PER\n"
    )
    rows = [
        {
            "tokens": ["EU", "rejects"],
            "column2": ["NNP", "VBZ"],
            "column3": ["B-NP", "B-VP"],
            "ner_tags": ["B-ORG", "O"],
        },
        {"tokens": ["Peter"], "column2": ["NNP"], "column3": ["B-NP"], "ner_tags": ["B-PER"]},
    ]
    assert values_of(tmp_path / "x.conll", content) == rows
    assert values_of(tmp_path / "y.conll", "\ufeff" + content) == rows
    assert values_of(tmp_path / "z.conll", content.encode("utf-16")) == rows
    (tmp_path / "x.conll.gz").write_bytes(gzip.compress(content.encode()))
    assert [row.line for row in rows_of(tmp_path / "x.conll", content)] == [2, 7]
    assert values_of(tmp_path / "a.conll.gz", gzip.compress(content.encode())) == rows


def test_universal_dependencies(tmp_path: Path) -> None:
    lines = [
        "# newdoc id = x",
        "# text = vámonos al mar",
        "1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tvamos\tir\tVERB\t_\tMood=Imp\t0\troot\t_\t_",
        "2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_",
        "2.1\tx\tx\tX\t_\t_\t_\t_\t_\t_",
        "",
    ]
    (found,) = values_of(tmp_path / "x.conllu", "\n".join(lines) + "\n")
    assert (found["tokens"], found["upos"], found["head"]) == (["vamos", "nos"], ["VERB", "PRON"], ["0", "1"])
    assert list(found) == "tokens lemmas upos xpos feats head deprel deps misc".split()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# id 5239d808\tdomain=en\nada _ _ B-PER\n", ["ada"]),
        ("# sent_id = 3\n# text = a b\nada O\n", ["ada"]),
        ("ada O\n\n# a comment of five words\nbell O\n", ["ada", "bell"]),
        ("#hashtag\tO\nada\tB-PER\n", ["#hashtag", "ada"]),
        ("ada O\n# O\nbell O\n", ["ada", "#", "bell"]),
        ("new york\tB-LOC\n\u00a0\tO\n\u200b\tO\n", ["new york", "\u00a0", "\u200b"]),
        ("ada\n\nbell\n", ["ada", "bell"]),
    ],
)
def test_what_is_a_comment_and_what_a_word(tmp_path: Path, content: str, words: list[str]) -> None:
    assert [word for row in values_of(tmp_path / "x.conll", content) for word in row["tokens"]] == words


def test_a_wrong_line_costs_its_sentence_alone_and_is_named(tmp_path: Path) -> None:
    content = b"ada B-PER\n\nbell O\ncurie\n\neuler B\xe9 O\n\nfermi \xe9\n\ngauss O\n"
    found = rows_of(tmp_path / "x.conll", content)
    assert [row.values["tokens"] for row in found if isinstance(row, Row)] == [["ada"], ["gauss"]]
    assert [(row.line, row.reason.partition(" (")[0]) for row in found if isinstance(row, BadRow)] == [
        (2, "line 4: 1 column where the file's first line has 2"),
        (5, "line 6: 3 columns where the file's first line has 2"),
        (7, "line 8: not UTF-8"),
    ]
    (bad,) = [row for row in rows_of(tmp_path / "y.conll", "ada\tO\nbell\t\n") if isinstance(row, BadRow)]
    assert bad.reason == "line 2: the last column is empty"


def test_columns_are_looked_for_before_the_start(tmp_path: Path) -> None:
    rows_of(tmp_path / "x.conll", "ada NNP O\n")
    files = find_files([str(tmp_path / "x.conll")], "data.train")
    assert check_columns(files, ["tokens", "column2", "ner_tags"], "x") == []
    assert "(columns: column2, ner_tags, tokens)" in str(check_columns(files, ["words"], "x")[0])
    assert check_choice(files, ("text", "tokens"), "x") == check_choice(files, (), "x") == []
    assert [problem.where for problem in check_choice(files, ("words", "text"), "x")] == ["x"]


@pytest.mark.parametrize("saved", [False, True])
def test_numbers_have_the_names_of_a_sequence_of_class_labels(tmp_path: Path, saved: bool) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["O", "B-PER", "I-PER"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = Dataset.from_dict({"tokens": [["ada", "bell"], ["curie"]], "ner_tags": [[1, 2], [0]]}, features=features)
    path = tmp_path / ("saved" if saved else "rows.parquet")
    if saved:
        rows.save_to_disk(path)
    else:
        rows.to_parquet(path)
    job = load_job(
        {
            "name": "x",
            "task": {"type": "token-classification"},
            "model": {"config": {"model_type": "bert"}, "tokenizer": "train"},
            "data": {"train": str(path)},
        }
    )
    named, told = name_labels(job, Files(find_files([str(path)], "data.train"), {}), None)
    assert getattr(named.task, "label_names") == names and told == []  # noqa: B009
