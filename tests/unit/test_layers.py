"""Imports point down the list of layers only, and what must start fast imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raytrain_nlp

ROOT = Path(raytrain_nlp.__file__).parent
LAYERS = [
    {"cli"},
    {"tuning"},
    {"driver"},
    {"worker"},
    {"data", "run"},
    {"modeling", "checkpoint", "tracking"},
    {"tasks"},
    {"config"},
    {"remote", "cluster"},
    {"paths", "scratch", "programs", "sockets", "devices"},
    {"failures"},
    {"beside", "confined", "files", "once"},
    {"user_code"},
    {"errors"},
]


def layer_of(name: str) -> int:
    return next(i for i, members in enumerate(LAYERS) if name in members)


def imports_of(path: Path) -> set[str]:
    """Top-level members of this package that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "raytrain_nlp" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    member = relative.parts[0].removesuffix(".py")
    if member == "__init__":
        return
    for imported in imports_of(path):
        if imported != member:
            assert layer_of(imported) > layer_of(member), f"{relative} imports {imported}"


def test_every_member_has_a_layer() -> None:
    members = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert members - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("module", ["raytrain_nlp", "raytrain_nlp.config", "raytrain_nlp.cli.main", "raytrain_nlp.data.plan"])
def test_light_modules_import_no_ml_library(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'transformers', 'ray', 'mlflow', 'deepspeed', 'datasets') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_feed_imports_no_torch() -> None:
    """Its remote functions run beside training on the same CPUs: they must start fast and stay small."""
    program = "import sys, raytrain_nlp.data.feed; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_public_names_are_what_all_says() -> None:
    assert all(getattr(raytrain_nlp, name) is not None for name in raytrain_nlp.__all__)
    assert sorted(raytrain_nlp.__all__) == sorted(set(raytrain_nlp.__all__))


def test_no_submodule_hides_a_function_of_the_api() -> None:
    """`raytrain_nlp.train` must stay the function, whatever was imported before it was asked for."""
    import raytrain_nlp.cli.main  # noqa: F401
    import raytrain_nlp.verbs.train  # noqa: F401

    assert not {path.stem for path in ROOT.iterdir()} & set(raytrain_nlp.__all__)
    assert callable(raytrain_nlp.train) and callable(raytrain_nlp.check)


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their bare name, so a second one of a name ends the whole run at collection, in a fresh checkout only."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
