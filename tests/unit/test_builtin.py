"""`builtin:NAME`: every source is there without a download, split without copies, the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY

from raytrain_nlp.config import load_job
from raytrain_nlp.data import builtin
from raytrain_nlp.data.builtin import BUILTINS, build_builtin, builtin_fingerprint
from raytrain_nlp.data.prose import key_of
from raytrain_nlp.data.python_docs import _documents_of, _new_paragraphs
from raytrain_nlp.data.summaries import _row_of
from raytrain_nlp.driver.inputs import find_job_files
from raytrain_nlp.errors import InputError

MADE_HERE = ["docstrings/summaries", "numbers", "python-docs"]  # builtin:docstrings has a test file of its own
ALL_AT_ONCE = """
import sys
from pathlib import Path
from raytrain_nlp.data.builtin import build_builtin
for name in sys.argv[2:]:
    build_builtin(f"builtin:{name}", Path(sys.argv[1]), "data.train")
print([name for name in ("torch", "numpy", "pandas", "transformers", "ray") if name in sys.modules])
"""

Rows = dict[str, list[dict]]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path, str]:
    """The cache of a build here, that of one in a process of its own (another hash seed), and what that one says it has imported."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    with subprocess.Popen([sys.executable, "-c", ALL_AT_ONCE, str(there), *MADE_HERE], stdout=subprocess.PIPE, text=True) as process:
        for name in MADE_HERE:
            build_builtin(f"builtin:{name}", here, "data.train")
        output, _ = process.communicate()
    assert process.returncode == 0
    return here, there, output


@pytest.fixture(scope="module")
def rows(both) -> dict[str, Rows]:
    found = {name: build_builtin(f"builtin:{name}", both[0], "data.train") for name in MADE_HERE}
    return {name: {split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for split, path in paths.items()} for name, paths in found.items()}


def test_the_same_bytes_in_another_process(both):
    here, there, output = both
    assert {path.relative_to(there): path.read_bytes() for path in there.glob("*/*")} == {path.relative_to(here): path.read_bytes() for path in here.glob("*/*")}
    assert len(list(here.glob("*/*"))) == 2 * len(MADE_HERE)
    assert output.strip() == "[]"


def test_files_are_made_once(both, monkeypatch):
    monkeypatch.setattr(builtin, "_write_lines", None)
    for name in MADE_HERE:
        assert all(path.is_file() for path in build_builtin(f"builtin:{name}", both[0], "data.train").values())


@pytest.mark.parametrize("name", MADE_HERE)
def test_no_row_is_empty_twice_or_in_both_splits(rows, name):
    texts = [key_of(str(row.get("text", row))) for split in rows[name].values() for row in split]
    assert len(texts) == len(set(texts))
    for row in rows[name]["train"] + rows[name]["validation"]:
        assert all(value.strip() for value in row.get("translation", row).values())


def test_python_docs_are_documents(rows):
    splits = rows["python-docs"]
    texts = [row["text"] for split in splits.values() for row in split]
    assert 1_200_000 < sum(map(len, texts)) < 3_000_000
    assert 0.05 < len(splits["validation"]) / len(texts) < 0.1
    assert min(map(len, texts)) >= 300
    assert sorted(map(len, texts))[len(texts) * 99 // 100] < 2500
    assert not [text for text in texts if "\t" in text or "\n\n\n" in text or " \n" in text or text != text.strip("\n")]
    assert any("Customizing attribute access" in text for text in texts)  # a topic of help()
    assert any("Wrap a single paragraph of text" in text for text in texts)  # textwrap's


def test_no_paragraph_of_python_docs_is_in_both_splits(rows):
    train, validation = (
        {key_of(part) for row in rows["python-docs"][split] for part in row["text"].split("\n\n") if len(part) >= 40} for split in ("train", "validation")
    )
    assert not train & validation


def test_paragraphs_keep_their_lines_and_lose_copies():
    seen: set[str] = set()
    text = "A title\n*******\n\nSome words  \n   indented as they were written.\n\n\nFor example:\n\n   code()\n"
    assert list(_new_paragraphs(text, seen)) == ["A title", "Some words\n   indented as they were written.", "For example:", "   code()"]
    assert list(_new_paragraphs("Some words indented as THEY were written.\n\nFor example:", seen)) == ["For example:"]


def test_documents_are_long_enough_and_their_paragraphs_whole():
    parts = [f"{i} " + "x" * 498 for i in range(9)]
    documents = _documents_of(iter(parts))
    assert "\n\n".join(documents) == "\n\n".join(parts)
    assert [len(text.split("\n\n")) for text in documents] == [3, 3, 3]
    assert len(_documents_of(["x" * 1999, "y" * 20])) == 1
    assert _documents_of(["too short"]) == []
    assert _documents_of([]) == []


def test_summaries_say_what_the_text_is_about(rows):
    splits = rows["docstrings/summaries"]
    both = splits["train"] + splits["validation"]
    assert 2000 <= len(both) <= 8000
    assert 0.07 < len(splits["validation"]) / len(both) < 0.13
    for row in both:
        assert list(row) == ["text", "summary"]
        assert 80 <= len(row["text"]) <= 1000 and 15 <= len(row["summary"]) <= 200
        assert not set("\n\t") & set(row["text"] + row["summary"])
    assert len({key_of(row["summary"]) for row in both}) == len(both)


def test_a_summary_is_the_first_sentence():
    rest = "It takes the rows one after the other, looks at each of them, and gives back those that were asked for."
    assert _row_of(f"Return all the rows of a file. {rest}") == {"summary": "Return all the rows of a file.", "text": rest}
    assert _row_of(f"Return all the rows\nof e.g. a file\n\n{rest}") == {"summary": "Return all the rows of e.g. a file", "text": rest}
    assert _row_of("Return all the rows of a file.") is None
    assert _row_of(f"Rows.\n\n{rest}") is None
    assert _row_of("") is None


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
    source = builtin.Builtin(lambda: made.append(1) or {split: [{"text": "some words", "label": "a"}] for split in builtin.SPLITS}, lambda: 1)
    monkeypatch.setitem(BUILTINS, "tiny", source)
    files = find_job_files(job(tmp_path, train="builtin:tiny", validation="builtin:tiny"), tmp_path)
    folder = tmp_path / ".cache" / "sources" / f"tiny-{builtin_fingerprint('tiny')}"
    assert [[Path(file.path) for file in split] for split in (files.train, files.validation)] == [[folder / "train.jsonl"], [folder / "validation.jsonl"]]
    assert made == [1]


def test_an_unknown_name_is_told_with_the_nearest(tmp_path):
    with pytest.raises(InputError) as error:
        find_job_files(job(tmp_path, train="builtin:python-doc", validation="builtin:xyz"), tmp_path)
    assert [str(problem) for problem in error.value.problems] == [
        "data.train: no built-in data has this name ('python-doc'). Did you mean 'python-docs'?",
        "data.validation: no built-in data has this name ('xyz'). The names are docstrings, docstrings/summaries, numbers, python-docs.",
    ]


def test_sources_share_no_folder():
    assert len({builtin_fingerprint(name) for name in BUILTINS}) == len(BUILTINS)
