"""`builtin:docstrings`: what is read of a source, what stays of a docstring, and which texts are left out."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter

import pytest

from raytrain_nlp.data.builtin import build_builtin, builtin_fingerprint, docstrings
from raytrain_nlp.data.builtin.prose import key_of
from raytrain_nlp.data.builtin.python_sources import docs_in
from raytrain_nlp.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "torch.nn.Linear",
        "np.zeros",
        "PyTorch",
        "to_pandas",
        "MlflowClient",
        "RayTrainWorker",
        "ray.train",
        "Ray",
        "raylet",
        "scikit learn",
    ],
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
    assert docs_in(source, private=True) == [
        "module",
        "class",
        "method",
        "private method",
        "private class",
        "its method",
        "added {x}",
        "new",
    ]
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
    assert (
        docstrings.clean(doc) == "Solve the linear system with LIB inputs, as LIB does, in one go. a : array of numbers"
    )
    assert docstrings.clean("Too short.") is None


def test_fingerprint_is_stable_and_follows_the_versions(monkeypatch):
    before = builtin_fingerprint("docstrings")
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    assert builtin_fingerprint("docstrings") == before
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    assert builtin_fingerprint("docstrings") != before


def test_a_text_of_two_libraries_is_dropped(monkeypatch):
    common = "One sentence that two of the libraries have word for word."
    texts = {
        label: [f"The sentence number {i} that only the library {label} has." for i in range(100)] + [common]
        for label in ("a", "b")
    }
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
        build_builtin("builtin:docstrings", tmp_path / "none", "data.train")
    assert not (tmp_path / "none").exists()
