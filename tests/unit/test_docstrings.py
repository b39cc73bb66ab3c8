"""`builtin:docstrings`: real rows from installed libraries, masked, without copies, the same every time."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from raytrain_nlp.data import docstrings
from raytrain_nlp.data.builtin import build_builtin, builtin_fingerprint
from raytrain_nlp.data.prose import key_of
from raytrain_nlp.data.python_sources import docs_in
from raytrain_nlp.errors import InputError

OWN_NAMES = {
    "numpy": "numpy|np", "pandas": "pandas|pd", "torch": "torch|pytorch", "scikit-learn": "scikit-learn|scikit learn|sklearn",
    "transformers": "transformers|hugging ?face", "datasets": "datasets", "mlflow": "mlflow", "ray": "ray",
}  # fmt: skip


BUILD = """
import sys
from pathlib import Path
from raytrain_nlp.data.builtin import build_builtin
build_builtin("builtin:docstrings", Path(sys.argv[1]), "data.train")
print([name for name in ("torch", "pandas", "sklearn", "transformers", "ray", "mlflow") if name in sys.modules])
"""


def build(cache: Path) -> dict[str, Path]:
    return build_builtin("builtin:docstrings", cache, "data.train")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict[str, Path], Path, str]:
    """A build here, and at the same time the cache and the output of one in a process of its own: another hash seed, nothing imported."""
    other = tmp_path_factory.mktemp("other") / "new"
    with subprocess.Popen([sys.executable, "-c", BUILD, str(other)], stdout=subprocess.PIPE, text=True) as process:
        built = build(tmp_path_factory.mktemp("docstrings"))
        output, _ = process.communicate()
    assert process.returncode == 0
    return built, other, output


@pytest.fixture(scope="module")
def built(both) -> dict[str, Path]:
    return both[0]


@pytest.fixture(scope="module")
def rows(built) -> dict[str, list[dict[str, str]]]:
    return {split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for split, path in built.items()}


def test_rows_have_a_text_and_a_label(built, rows):
    assert {split: path.name for split, path in built.items()} == {"train": "train.jsonl", "validation": "validation.jsonl"}
    assert sorted(path.name for path in built["train"].parent.iterdir()) == ["train.jsonl", "validation.jsonl"]
    for row in rows["train"] + rows["validation"]:
        assert list(row) == ["text", "label"]
        assert 40 <= len(row["text"]) <= 600
        assert len(row["text"].split()) >= 6
        assert row["text"] == " ".join(row["text"].split())


def test_no_text_occurs_twice_or_in_both_splits(rows):
    texts = [row["text"].lower() for split in rows.values() for row in split]
    assert len(texts) == len(set(texts))


def test_labels_are_many_and_balanced(rows):
    validation = Counter(row["label"] for row in rows["validation"])
    assert len(validation) >= 5
    assert set(validation) == {row["label"] for row in rows["train"]}
    assert max(validation.values()) / validation.total() < 0.35
    assert 0.1 < validation.total() / (validation.total() + len(rows["train"])) < 0.2


def test_no_text_names_its_library(rows):
    leaks = [row for split in rows.values() for row in split if re.search(rf"\b({OWN_NAMES[row['label']]})\b", row["text"], re.IGNORECASE)]
    assert leaks == []


@pytest.mark.parametrize(
    "text",
    ["torch.nn.Linear", "np.zeros", "PyTorch", "to_pandas", "MlflowClient", "RayTrainWorker", "ray.train", "Ray", "raylet", "scikit learn"],
)
def test_names_are_masked_with_all_that_hangs_on_them(text):
    assert docstrings._NAMES.sub("LIB", f"see {text}, please") == "see LIB, please"


def test_words_that_only_contain_a_short_name_stay():
    text = "an array of input, updates and parts; a stray xarray"
    assert docstrings._NAMES.sub("LIB", text) == text


def test_docs_of_public_objects_and_of_extension_functions_are_read():
    source = b'''
"""module"""
class A:
    """class"""
    def run(self):
        """method"""
        def inner():
            """inner"""
    def _run(self):
        """private method"""
class _B:
    """private class"""
    def run(self):
        """its method"""
torch.add_docstr(torch.abs, r"""added {x}""".format(x=1))
add_newdoc("numpy", "ndarray", ("T", """new"""))
'''
    assert docs_in(source) == ["module", "class", "method", "added {x}", "new"]
    assert docs_in(source, private=True) == ["module", "class", "method", "private method", "private class", "its method", "added {x}", "new"]
    assert docs_in(b"{{ a template }}: no Python") == []


def test_only_the_words_of_a_docstring_stay():
    doc = """solve(a, b) -> Tensor

    Solve the linear system with :class:`~torch.Tensor` inputs, as scikit
    learn does, in one go.

    Copyright 2020 of somebody.

    Parameters
    ----------
    a : array of numbers

    Examples
    --------
    >>> solve(1, 2)
    3
    """
    assert docstrings._clean(doc) == "Solve the linear system with LIB inputs, as LIB does, in one go. a : array of numbers"
    assert docstrings._clean("Too short.") is None


def test_a_finished_folder_is_reused(built):
    before = {path: path.stat().st_mtime_ns for path in built.values()}
    assert build(built["train"].parents[1]) == built
    assert {path: path.stat().st_mtime_ns for path in built.values()} == before


def test_building_again_gives_the_same_bytes(both):
    built, other, _ = both
    assert {path.name: path.read_bytes() for path in other.glob("*/*")} == {path.name: path.read_bytes() for path in built.values()}


def test_building_imports_no_library(both):
    assert both[2].strip() == "[]"


def test_fingerprint_is_stable_and_follows_the_versions(monkeypatch):
    before = builtin_fingerprint("docstrings")
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    assert builtin_fingerprint("docstrings") == before
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    assert builtin_fingerprint("docstrings") != before


def test_a_text_of_two_libraries_is_dropped(monkeypatch):
    common = "One sentence that two of the libraries have word for word."
    texts = {label: [f"The sentence number {i} that only the library {label} has." for i in range(100)] + [common] for label in ("a", "b")}
    monkeypatch.setattr(docstrings, "LIBRARIES", {"a": "a", "b": "b"})
    monkeypatch.setattr(docstrings, "installed_libraries", lambda: {"a": "1", "b": "1"})
    monkeypatch.setattr(docstrings, "_texts_of", lambda module: {key_of(text): text for text in texts[module]})
    splits = docstrings.collect_docstrings()
    rows = splits["train"] + splits["validation"]
    assert Counter(row["label"] for row in rows) == {"a": 100, "b": 100}
    assert common not in [row["text"] for row in rows]


def test_fewer_than_two_libraries_is_an_input_error(monkeypatch, tmp_path):
    monkeypatch.setattr(docstrings, "LIBRARIES", {"no-such-library": "no_such_library"})
    with pytest.raises(InputError, match=r"builtin:docstrings: it needs the sources of two libraries .*found: none"):
        build(tmp_path / "none")
    assert not (tmp_path / "none").exists()
