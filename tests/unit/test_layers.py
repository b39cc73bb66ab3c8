"""Rooms and their order: imports point down the list only, and what must start fast imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raytrain_nlp

ROOT = Path(raytrain_nlp.__file__).parent
ROOMS = [
    "cli",
    "tuning",
    "verbs",
    "deploy",
    "prediction",
    "reporting",
    "certificate",
    "launch",
    "planning",
    "memory",
    "worker",
    "trainer",
    "cluster",
    "run",
    "checkpoint",
    "tracking",
    "data",
    "data/reading",
    "data/builtin",
    "modeling",
    "tasks",
    "cpu",
    "distributed",
    "config",
    "failures",
    "user_code",
    "paths",
    "storage",
    "compat",
    "host",
    "results",
    "errors",
    "redaction",
]
"""From top to bottom. A room is a folder, or a module of the package itself; `cli` and `config` are read with the rooms
in them.
"""

MOST_FILES = 18
MOST_OF_THE_CODE = 0.15
HELD_ELSEWHERE = {
    "compat/accelerate.py": "its method by test_contract.py; in use by every run of tests/integration with DeepSpeed",
    "compat/huggingface_hub.py": "tests/integration/test_hub.py, with a hub on this machine",
    "compat/nvml.py": "tests/gpu: there is no NVML without a GPU",
    "compat/optuna.py": "through tuning/study.py by test_sweep_parts.py",
    "compat/quiet.py": "through compat/ray.py by tests/integration",
    "compat/ray.py": "its names by test_contract.py; needs a Ray: tests/integration",
    "compat/ray_autoscaler.py": "through cluster/cluster_file.py by test_cluster_file.py",
    "compat/ray_names.py": "a list, which test_contract.py reads as a part of private_names.py",
    "compat/ray_node.py": "needs a Ray: every test of tests/integration starts its head by it",
    "compat/ray_train.py": "needs a Ray: every run of tests/integration",
    "compat/ray_tune.py": "needs a Ray: tests/integration/test_sweep.py",
    "compat/transformers.py": "its names by test_contract.py; in use by every run of tests/integration",
}
"""Module -> what holds it instead of a unit test that names it."""
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    """Of a module, or of a package's `__init__.py`."""
    folder = path.relative_to(ROOT).parent.as_posix()
    if folder == ".":
        return path.stem
    return folder if folder in ROOMS else folder.split("/")[0]


def imports_of(path: Path, for_types: bool = True) -> set[Path]:
    """Files of this package that a module imports, at any depth of its code; of a name in a package: its module, or the
    package.

    `for_types`: also what is imported for the type checker alone.
    """
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for_checker = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    left_out = set() if for_types else {id(node) for block in for_checker for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "raytrain_nlp":
                found.add(next(file for file in candidates(parts[1:]) if file.exists()))
    return found - {ROOT / "__init__.py"}


def candidates(parts: list[str]) -> list[Path]:
    whole, owner = ROOT.joinpath(*parts), ROOT.joinpath(*parts[:-1])
    return [whole.with_suffix(".py"), whole / "__init__.py", owner.with_suffix(".py"), owner / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    mine = room_of(path)
    for imported in imports_of(path):
        theirs = room_of(imported)
        assert theirs == mine or ROOMS.index(theirs) > ROOMS.index(mine), (
            f"{path.relative_to(ROOT)} imports {imported.relative_to(ROOT)}"
        )


def test_no_imports_go_round() -> None:
    """Neither among rooms, which their order forbids, nor among the modules of one."""
    imports = {path: imports_of(path, for_types=False) for path in MODULES}
    while free := [path for path, needs in imports.items() if not needs & imports.keys()]:
        for path in free:
            del imports[path]
    assert not imports, sorted(str(path.relative_to(ROOT)) for path in imports)


def test_every_room_has_a_place_and_says_in_a_sentence_what_it_is() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)
    for folder in {path.parent for path in MODULES} - {ROOT}:
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert said, f"{folder.relative_to(ROOT)}/__init__.py says nothing"


def test_no_room_is_a_corridor() -> None:
    lines = {
        folder: [len(path.read_text().splitlines()) for path in folder.glob("*.py")]
        for folder in {path.parent for path in MODULES} - {ROOT}
    }
    assert {folder.name: len(files) for folder, files in lines.items() if len(files) > MOST_FILES} == {}
    whole = sum(map(sum, lines.values()))
    assert {
        folder.name: sum(files) / whole for folder, files in lines.items() if sum(files) > MOST_OF_THE_CODE * whole
    } == {}


@pytest.mark.parametrize(
    "module", ["raytrain_nlp", "raytrain_nlp.config", "raytrain_nlp.cli.main", "raytrain_nlp.data.plan"]
)
def test_light_modules_import_no_ml_library(module: str) -> None:
    program = (
        f"import sys, {module}; print([name for name in ('torch', 'transformers', 'ray', 'mlflow', 'deepspeed', "
        f"'datasets') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_the_feed_imports_no_torch() -> None:
    """Its remote functions run beside training on the same CPUs: they must start fast and stay small."""
    program = "import sys, raytrain_nlp.data.feed; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_public_names_are_what_all_says() -> None:
    assert all(getattr(raytrain_nlp, name) is not None for name in raytrain_nlp.__all__)
    assert sorted(raytrain_nlp.__all__) == sorted(set(raytrain_nlp.__all__))


def test_no_submodule_hides_a_function_of_the_api() -> None:
    """`raytrain_nlp.train` must stay the function, whatever was imported before it was asked for."""
    import raytrain_nlp.cli.main
    import raytrain_nlp.verbs.train

    assert not {path.stem for path in ROOT.iterdir()} & set(raytrain_nlp.__all__)
    assert callable(raytrain_nlp.train) and callable(raytrain_nlp.check)


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their bare name, so a second one of a name ends the whole run at collection, in a fresh
    checkout only.
    """
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_module_is_named_by_a_unit_test() -> None:
    """Else nothing of tests/unit fails where it breaks: a run of minutes has to. `HELD_ELSEWHERE` says for which that
    is right, and why.
    """
    named = set().union(*(imports_of(path) for path in Path(__file__).parent.glob("test_*.py")))
    alone = {path.relative_to(ROOT).as_posix() for path in MODULES if path not in named and path.name != "__init__.py"}
    assert alone - HELD_ELSEWHERE.keys() == set()
    assert [name for name in HELD_ELSEWHERE if not (ROOT / name).exists()] == [] and all(HELD_ELSEWHERE.values())
