"""The package as one uses it from Python: what completion and `help()` show, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import inspect
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

import raytrain_nlp
from raytrain_nlp.cli import progress
from raytrain_nlp.cli.progress import is_watched, with_progress
from raytrain_nlp.run.observer import Observer

FUNCTIONS = [name for name in raytrain_nlp.__all__ if name[0].islower()]


def test_the_functions_are_there_before_they_are_loaded() -> None:
    program = (
        "import sys, raytrain_nlp; names = dir(raytrain_nlp); "
        "print(sorted({*raytrain_nlp.__all__} - {*names}), [name for name in ('torch', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_the_checker_knows_the_names_that_are_loaded_late() -> None:
    """What the type checker, and so an editor, sees is what there is at run time."""
    source = inspect.getsource(raytrain_nlp).partition("if TYPE_CHECKING:")[2].partition("_HOME = ")[0]
    assert all(name in source.replace(",", " ").split() for name in raytrain_nlp.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_says_how_it_is_used(name: str) -> None:
    """Examples that need no run are run here; the others by tests/cluster/test_first_hour.py."""
    function = getattr(raytrain_nlp, name)
    found = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert found and found[0].examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(found[0]).failed == 0
    assert "self" not in inspect.signature(function).parameters


@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_shown_where_somebody_looks_on(
    watched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "is_watched", lambda: watched)

    def train(job: str, *, observer: Observer | None = None) -> str:
        (observer or Observer()).stage(f"training {job}")
        return job

    assert with_progress(train)("my.yaml") == "my.yaml"
    assert ("training my.yaml ..." in capsys.readouterr().err) is watched
    heard: list[str] = []
    own = Observer()
    monkeypatch.setattr(own, "stage", heard.append)
    with_progress(train)("my.yaml", observer=own)
    assert heard == ["training my.yaml"] and capsys.readouterr().err == ""


def test_a_notebook_counts_as_looking_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_watched()
    kernel = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    assert is_watched()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not is_watched()


def test_a_function_is_one_object_with_its_own_signature() -> None:
    assert raytrain_nlp.train is raytrain_nlp.train
    assert "resume" in inspect.signature(raytrain_nlp.train).parameters
