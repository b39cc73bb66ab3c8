"""The package as one uses it from Python: what completion and `help()` show, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import pytest

import raytrain_nlp

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
