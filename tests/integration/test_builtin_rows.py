"""`builtin:NAME`: every source is there without a download, split without copies, the same every time; docstrings do
not name their library.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from raytrain_nlp.data import builtin
from raytrain_nlp.data.builtin import BUILTINS, build_builtin
from raytrain_nlp.data.builtin.prose import key_of

OWN_NAMES = {
    "numpy": "numpy|np",
    "pandas": "pandas|pd",
    "torch": "torch|pytorch",
    "scikit-learn": "scikit-learn|scikit learn|sklearn",
    "transformers": "transformers|hugging ?face",
    "datasets": "datasets",
    "mlflow": "mlflow",
    "ray": "ray",
}
ALL_AT_ONCE = """
import sys
from pathlib import Path
from raytrain_nlp.data.builtin import BUILTINS, build_builtin
for name in BUILTINS:
    build_builtin(f"builtin:{name}", Path(sys.argv[1]), "data.train")
print([name for name in ("torch", "numpy", "pandas", "sklearn", "transformers", "ray", "mlflow") if name in sys.modules])
"""  # noqa: E501

Rows = dict[str, list[dict]]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path, str]:
    """The cache of a build here, that of one in a process of its own (another hash seed), and what that one says it has
    imported.
    """
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    with subprocess.Popen(
        [sys.executable, "-c", ALL_AT_ONCE, str(there)], stdout=subprocess.PIPE, text=True
    ) as process:
        for name in BUILTINS:
            build_builtin(f"builtin:{name}", here, "data.train")
        output, _ = process.communicate()
    assert process.returncode == 0
    return here, there, output


@pytest.fixture(scope="module")
def rows(both) -> dict[str, Rows]:
    found = {name: build_builtin(f"builtin:{name}", both[0], "data.train") for name in BUILTINS}
    return {
        name: {
            split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for split, path in paths.items()
        }
        for name, paths in found.items()
    }


def test_the_same_bytes_in_another_process(both):
    here, there, output = both
    assert {path.relative_to(there): path.read_bytes() for path in there.glob("*/*")} == {
        path.relative_to(here): path.read_bytes() for path in here.glob("*/*")
    }
    assert len(list(here.glob("*/*"))) == 2 * len(BUILTINS)
    assert output.strip() == "[]"


def test_files_are_made_once(both, monkeypatch):
    monkeypatch.setattr(builtin, "_write_lines", None)
    for name in BUILTINS:
        built = build_builtin(f"builtin:{name}", both[0], "data.train")
        assert {split: path.name for split, path in built.items()} == {
            "train": "train.jsonl",
            "validation": "validation.jsonl",
        }
        assert sorted(built["train"].parent.iterdir()) == sorted(built.values())


@pytest.mark.parametrize("name", BUILTINS)
def test_no_row_is_empty_twice_or_in_both_splits(rows, name):
    texts = [key_of(str(row.get("text", row))) for split in rows[name].values() for row in split]
    assert len(texts) == len(set(texts))
    for row in rows[name]["train"] + rows[name]["validation"]:
        assert all(str(value).strip() for value in row.get("translation", row).values())


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
        {key_of(part) for row in rows["python-docs"][split] for part in row["text"].split("\n\n") if len(part) >= 40}
        for split in ("train", "validation")
    )
    assert not train & validation


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


def test_docstrings_have_a_text_and_a_label(rows):
    rows = rows["docstrings"]
    for row in rows["train"] + rows["validation"]:
        assert list(row) == ["text", "label"]
        assert 40 <= len(row["text"]) <= 600
        assert len(row["text"].split()) >= 6
        assert row["text"] == " ".join(row["text"].split())


def test_no_docstring_occurs_twice_or_in_both_splits(rows):
    texts = [row["text"].lower() for split in rows["docstrings"].values() for row in split]
    assert len(texts) == len(set(texts))


def test_labels_are_many_and_balanced(rows):
    rows = rows["docstrings"]
    validation = Counter(row["label"] for row in rows["validation"])
    assert len(validation) >= 5
    assert set(validation) == {row["label"] for row in rows["train"]}
    assert max(validation.values()) / validation.total() < 0.35
    assert 0.1 < validation.total() / (validation.total() + len(rows["train"])) < 0.2


def test_no_text_names_its_library(rows):
    leaks = [
        row
        for split in rows["docstrings"].values()
        for row in split
        if re.search(rf"\b({OWN_NAMES[row['label']]})\b", row["text"], re.IGNORECASE)
    ]
    assert leaks == []
