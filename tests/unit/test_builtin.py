"""`builtin:NAME`: how documents and summaries are cut from texts, where a job finds its rows, names that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY

from raytrain_nlp.config import load_job
from raytrain_nlp.data import builtin
from raytrain_nlp.data.builtin import BUILTINS, builtin_fingerprint, standard_library
from raytrain_nlp.data.builtin.names import name_rows
from raytrain_nlp.data.builtin.python_docs import _documents_of, _new_paragraphs
from raytrain_nlp.data.builtin.summaries import _row_of
from raytrain_nlp.errors import InputError
from raytrain_nlp.planning.inputs import find_job_files


def test_paragraphs_keep_their_lines_and_lose_copies():
    seen: set[str] = set()
    text = "A title\n*******\n\nSome words  \n   indented as they were written.\n\n\nFor example:\n\n   code()\n"
    assert list(_new_paragraphs(text, seen)) == [
        "A title",
        "Some words\n   indented as they were written.",
        "For example:",
        "   code()",
    ]
    assert list(_new_paragraphs("Some words indented as THEY were written.\n\nFor example:", seen)) == ["For example:"]


def test_documents_are_long_enough_and_their_paragraphs_whole():
    parts = [f"{i} " + "x" * 498 for i in range(9)]
    documents = _documents_of(iter(parts))
    assert "\n\n".join(documents) == "\n\n".join(parts)
    assert [len(text.split("\n\n")) for text in documents] == [3, 3, 3]
    assert len(_documents_of(["x" * 1999, "y" * 20])) == 1
    assert _documents_of(["too short"]) == []
    assert _documents_of([]) == []


def test_a_summary_is_the_first_sentence():
    rest = "It takes the rows one after the other, looks at each of them, and gives back those that were asked for."
    assert _row_of(f"Return all the rows of a file. {rest}") == {
        "summary": "Return all the rows of a file.",
        "text": rest,
    }
    assert _row_of(f"Return all the rows\nof e.g. a file\n\n{rest}") == {
        "summary": "Return all the rows of e.g. a file",
        "text": rest,
    }
    assert _row_of("Return all the rows of a file.") is None
    assert _row_of(f"Rows.\n\n{rest}") is None
    assert _row_of("") is None


def test_parts_of_the_standard_library_are_told_apart_without_their_names(monkeypatch):
    docs = {
        part: [f"The {part}.things numbered {i} belong to {part}lib and to no other part, {own}." for i in range(100)]
        for part, own in (("xml", "a tree"), ("http", "a wire"))
    }
    docs["rare"] = ["Too few of these docstrings are there to be learned from, by anybody."]
    monkeypatch.setattr(standard_library, "_docs_of_parts", lambda: docs)
    splits = standard_library.collect_modules()
    rows = splits["train"] + splits["validation"]
    assert {row["label"] for row in rows} == {"http", "xml"} and len(rows) == 200
    assert rows[0]["text"].startswith("The LIB numbered") and not any("xml" in row["text"] for row in rows)
    assert [standard_library._part_of(name) for name in ("xml/dom/minidom.py", "_pydecimal.py", "turtle.py")] == [
        "xml", "decimal", "turtle",
    ]  # fmt: skip
    monkeypatch.setattr(standard_library, "_docs_of_parts", dict)
    with pytest.raises(InputError, match="builtin:docstrings/modules: it needs the sources of Python's standard"):
        standard_library.collect_modules()


def job(tmp_path: Path, **data: object) -> object:
    return load_job(
        {
            "task": {"type": "text-classification"},
            "model": {"config": TINY, "tokenizer": "train"},
            "data": data,
            "storage_path": str(tmp_path),
        }
    )


def test_a_job_finds_builtin_data_in_its_cache(tmp_path, monkeypatch):
    """Both splits come from one build, below the storage path of the job."""
    made = []
    source = builtin.Builtin(
        lambda: made.append(1) or {split: [{"text": "some words", "label": "a"}] for split in builtin.SPLITS}, lambda: 1
    )
    monkeypatch.setitem(BUILTINS, "tiny", source)
    files = find_job_files(job(tmp_path, train="builtin:tiny", validation="builtin:tiny"), tmp_path)
    folder = tmp_path / ".cache" / "sources" / f"tiny-{builtin_fingerprint('tiny')}"
    assert [[Path(file.path) for file in split] for split in (files.train, files.validation)] == [
        [folder / "train.jsonl"],
        [folder / "validation.jsonl"],
    ]
    assert made == [1]


def test_an_unknown_name_is_told_with_the_nearest(tmp_path):
    with pytest.raises(InputError) as error:
        find_job_files(job(tmp_path, train="builtin:python-doc", validation="builtin:xyz"), tmp_path)
    assert [str(problem) for problem in error.value.problems] == [
        "data.train: no built-in data has this name ('python-doc'). Did you mean 'python-docs'?",
        "data.validation: no built-in data has this name ('xyz'). The names are docstrings, docstrings/endings, "
        "docstrings/modules, docstrings/summaries, facts, names, numbers, numbers/preferences, python-docs.",
    ]


def test_sources_share_no_folder():
    assert len({builtin_fingerprint(name) for name in BUILTINS}) == len(BUILTINS)


def test_names_stand_in_sentences_and_half_of_those_of_validation_are_new():
    made = name_rows()
    assert {split: len(rows) for split, rows in made.items()} == {"train": 6000, "validation": 600}
    names = {split: set() for split in made}
    for split, rows in made.items():
        for row in rows:
            before = "O"
            for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
                assert tag == "O" or tag.startswith("B-") or before[1:] == tag[1:]
                before = tag
                names[split] |= {word} if tag[2:] in ("PER", "LOC", "ORG") and len(word) > 3 else set()
    assert {tag[2:] for row in made["train"] for tag in row["ner_tags"]} == {"", "PER", "LOC", "ORG", "DATE"}
    assert 0.3 < len(names["validation"] - names["train"]) / len(names["validation"]) < 0.7
