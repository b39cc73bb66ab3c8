"""Tokens are made again when the user's code has changed: the named module, or anything of the user's that it
imports.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raytrain_nlp import user_code
from raytrain_nlp.user_code import UserObject


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes the modules of a user, below a package with a name of its own, which it returns."""
    root = f"user_{uuid.uuid4().hex[:8]}"
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]

    def write(**sources: str) -> str:
        for name, text in sources.items():
            path = (
                tmp_path
                / root
                / (
                    name.replace("__", "/") + ".py"
                    if not name.endswith("init")
                    else name.removesuffix("init").replace("__", "/") + "__init__.py"
                )
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("ROOT", root))
        return root

    yield write
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] == root]:
        del sys.modules[name]


def fingerprint(root: str, folder: Path) -> str:
    return UserObject(f"{root}.rows:clean", "trainer.preprocess", str(folder)).fingerprint()


ROWS = {
    "from": "from ROOT.helper import f\ndef clean(row):\n    return f(row)\n",
    "import as": "import ROOT.helper as h\ndef clean(row):\n    return h.f(row)\n",
    "a module of a package": "from ROOT import helper\ndef clean(row):\n    return helper.f(row)\n",
    "relative": "from .helper import f\ndef clean(row):\n    return f(row)\n",
    "relative module": "from . import helper\ndef clean(row):\n    return helper.f(row)\n",
    "star": "from .helper import *\ndef clean(row):\n    return f(row)\n",
    "in a function": "def clean(row):\n    from ROOT.helper import f\n    return f(row)\n",
    "in a try": "try:\n    from ROOT import helper\nexcept ImportError:\n    helper = None\ndef clean(row):\n    return row\n",  # noqa: E501
    "by its name": "import importlib\ndef clean(row):\n    return importlib.import_module('ROOT.helper').f(row)\n",
    "by another": "import ROOT.between\ndef clean(row):\n    return row\n",
}


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_a_helper_that_changes_changes_it(tmp_path: Path, write: Callable[..., str], rows: str) -> None:
    between = "from ROOT.deep import over\n"
    root = write(
        rows=ROWS[rows],
        helper="def f(row):\n    return row\n",
        between=between,
        deep__over="from ..helper import f\n",
        other="x = 1\n",
    )
    first = fingerprint(root, tmp_path)
    assert fingerprint(root, tmp_path) == first
    write(other="x = 2\n")
    assert fingerprint(root, tmp_path) == first  # nobody imports it
    write(helper="def f(row):\n    return None\n")
    assert fingerprint(root, tmp_path) != first
    write(helper="def f(row):\n    return row\n")
    assert fingerprint(root, tmp_path) == first


def test_packages_cycles_and_sources_that_cannot_be_read(tmp_path: Path, write: Callable[..., str]) -> None:
    root = write(
        init="y = 1\n",
        rows="from . import a\ndef clean(row):\n    return row\n",
        a="import ROOT.b\n",
        b="import json\nimport numpy as np\ntry:\n    import missing_module\n    from . import broken\nexcept Exception:\n    pass\nfrom . import a\n",  # noqa: E501
        broken="def (:\n",
    )
    fingerprint(root, tmp_path)
    assert {*user_code.user_sources(f"{root}.rows", str(tmp_path))} == {
        root,
        *(f"{root}.{name}" for name in ("rows", "a", "b", "broken")),
    }
    first = fingerprint(root, tmp_path)
    write(init="y = 2\n")
    assert fingerprint(root, tmp_path) != first


def test_a_folder_elsewhere_on_the_path(
    tmp_path: Path, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"helpers_{uuid.uuid4().hex[:8]}"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    root = write(rows=f"def clean(row):\n    import {name}\n    return row\n")
    first = fingerprint(root, tmp_path)
    (tmp_path / "lib" / f"{name}.py").write_text("x = 2\n")
    assert fingerprint(root, tmp_path) != first


def test_what_is_installed_counts_where_it_is_named_itself(tmp_path: Path) -> None:
    one, other = (
        UserObject(name, "trainer.preprocess", str(tmp_path)).fingerprint() for name in ("json:loads", "math:sqrt")
    )
    assert one != other and not user_code.user_sources("json", str(tmp_path))
