"""What this package relies on in other libraries beside what they document is there; what is not is named, and none of
it is used outside compat.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainer, Trainer

import raytrain_nlp
from raytrain_nlp.compat.contract import describe, find_moved, main
from raytrain_nlp.compat.deepspeed import import_deepspeed
from raytrain_nlp.compat.names import INSTANCE, Name
from raytrain_nlp.compat.private_names import NAMES, OVERRIDDEN

ROOT = Path(raytrain_nlp.__file__).parent
LIBRARIES = {
    "ray",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "torch",
    "optuna",
    "mlflow",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "fsspec",
}
OUTSIDE = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT / "compat"]


def test_nothing_has_moved() -> None:
    import_deepspeed()
    assert find_moved(NAMES) == []
    assert len({name.path for name in NAMES}) == len(NAMES)


class Engine:
    """Of a library that does not exist."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._first, self._second = 1, 2

    def _load(self, path: str, *names: str, strict: bool = True) -> None: ...


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for a library, with a private module in it."""
    whole, inner = types.ModuleType("standin"), types.ModuleType("standin._inner")
    whole._inner, whole.Engine, inner.find, inner.LIMIT = (
        inner,
        type("Engine", (Engine,), {}),
        lambda name, folder=None: name,
        7,
    )
    monkeypatch.setitem(sys.modules, "standin", whole)
    monkeypatch.setitem(sys.modules, "standin._inner", inner)
    return whole


RELIED = [
    Name("standin._inner", "module"),
    Name("standin._inner.find", "(name, folder=)"),
    Name("standin._inner.LIMIT", "int"),
    Name("standin.Engine", "class"),
    Name("standin.Engine._load", "(self, path, *names, strict=)"),
    Name("standin.Engine._files", INSTANCE),
    Name("standin.Engine._second", INSTANCE),
]


def test_a_library_as_it_was_has_nothing_moved(library: Any) -> None:
    assert find_moved(RELIED) == []
    assert describe("standin.Engine._third") is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda library: delattr(library._inner, "find"), "standin._inner.find: is missing"),
        (
            lambda library: setattr(library._inner, "find", lambda name, where: name),
            "standin._inner.find: signature is now (name, where), was (name, folder=)",
        ),
        (lambda library: setattr(library._inner, "LIMIT", "7"), "standin._inner.LIMIT: is now str, was int"),
        (
            lambda library: setattr(library.Engine, "_load", None),
            "standin.Engine._load: is now NoneType, was (self, path, *names, strict=)",
        ),
        (lambda library: setattr(library, "Engine", 1), "standin.Engine: is now int, was class"),
    ],
)
def test_what_a_library_lacks_is_named(change: Any, line: str, library: Any) -> None:
    change(library)
    assert line in find_moved(RELIED)


def test_a_library_that_no_longer_calls_what_is_overridden_is_named() -> None:
    relied = Name(
        "transformers.Trainer._load_best_model", "(self)", (("transformers.trainer", "self._load_the_best("),)
    )
    assert find_moved([relied]) == [
        "transformers.Trainer._load_best_model: transformers.trainer has no `self._load_the_best(` any more"
    ]


def test_the_program_prints_what_moved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("raytrain_nlp.compat.contract.NAMES", [Name("transformers.Trainer._load_best_model", "(self)")])
    assert main() == 0 and "all as expected" in capsys.readouterr().out
    monkeypatch.delattr(Trainer, "_load_best_model")
    assert main() == 1 and "transformers.Trainer._load_best_model: is missing" in capsys.readouterr().out.splitlines()


def test_the_contract_has_what_the_trainer_overrides() -> None:
    from raytrain_nlp.trainer.evaluation import EvaluationMixin
    from raytrain_nlp.trainer.trainer import FeedTrainer
    from raytrain_nlp.trainer.training_step import StepMixin

    own = {
        name
        for cls in (StepMixin, FeedTrainer, EvaluationMixin)
        for name, value in vars(cls).items()
        if inspect.isfunction(value)
    }
    assert {name for name in own if hasattr(Trainer, name) and not name.startswith("__")} == set(OVERRIDDEN)


# Nothing of it outside compat


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_private_path(path: str) -> bool:
    """Of a library of these, with a part that it does not document."""
    parts = path.split(".")
    return parts[0] in LIBRARIES and any(is_private(part) for part in parts)


def defined_in(trees: list[ast.AST]) -> set[str]:
    """Names that the package's own code gives to something."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") == "self"
        ):
            found.add(node.attr)
    return found


@functools.cache
def of_trainer(name: str) -> bool:
    return is_private(name) and describe(f"transformers.Seq2SeqTrainer.{name}") is not None


def private_uses(tree: ast.AST, own: set[str], in_trainer: bool) -> Iterator[str]:
    """Private names of libraries in a module, and what it replaces in them.

    Args:
        own: names of this package.
        in_trainer: is `self` a `Trainer`, whose names are not this package's, whatever else has them?
    """
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            paths = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            yield from (f"import {path}" for path in paths if is_private_path(path))
            imported |= {
                alias.asname or alias.name.split(".")[0]
                for alias, path in zip(node.names, paths)
                if path.split(".")[0] in LIBRARIES
            }
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in OVERRIDDEN]
    overrides = {
        id(part)
        for method in methods
        for part in ast.walk(method)
        if isinstance(part, ast.Attribute) and part.attr == method.name
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (is_private(node.attr) or not isinstance(node.ctx, ast.Load)):
            owner, root = ast.unparse(node.value), ast.unparse(node).split(".")[0]
            base = owner == "trainer" or (in_trainer and owner in ("self", "super()"))
            foreign = node.attr not in own or (base and of_trainer(node.attr))
            if (
                is_private(node.attr)
                and foreign
                and root not in ("os", "sys")
                and not (owner == "super()" and id(node) in overrides)
            ):
                yield ast.unparse(node)
            if isinstance(node.ctx, (ast.Store, ast.Del)) and root in imported:
                yield f"replaces {ast.unparse(node)}"
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr", "delattr")
            and len(node.args) > 1
        ):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                yield ast.unparse(node)
            if ast.unparse(node.func) in ("setattr", "delattr") and ast.unparse(node.args[0]).split(".")[0] in imported:
                yield f"replaces {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and re.search(r"\bpatch(\.|$)", ast.unparse(node.func)):
            yield f"replaces {ast.unparse(node)}"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[\w.]+", node.value)
            and is_private_path(node.value)
        ):
            yield repr(node.value)


def test_no_private_name_of_a_library_is_used_outside_compat() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in OUTSIDE}
    own = defined_in(list(trees.values()))
    assert {
        str(path.relative_to(ROOT)): found
        for path, tree in trees.items()
        if (found := sorted(private_uses(tree, own, path.parent.name == "trainer")))
    } == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from ray._private.state import state", ["import ray._private.state.state"]),
        ("def f():\n from ray import _raylet", ["import ray._raylet"]),
        ("import ray.train.v2._internal.constants as c", ["import ray.train.v2._internal.constants"]),
        ("trial._trial_id", ["trial._trial_id"]),
        ("getattr(engine, '_optimizer', None)", ["getattr(engine, '_optimizer', None)"]),
        ("logging.getLogger('ray._private.node')", ["'ray._private.node'"]),
        ("import torch.nn.functional as F\nF.dropout = None", ["replaces F.dropout"]),
        ("import torch\ndel torch.nn.Linear.forward", ["replaces torch.nn.Linear.forward"]),
        ("import datasets\nsetattr(datasets.config, 'X', 1)", ["replaces setattr(datasets.config, 'X', 1)"]),
        ("mock.patch.object(Trainer, '__init__', f)", ["replaces mock.patch.object(Trainer, '__init__', f)"]),
        ("class T(Trainer):\n def log(self):\n  self._save()", ["self._save"]),
        ("class T(Trainer):\n def log(self):\n  super()._load_best_model()", ["super()._load_best_model"]),
        ("class T(Trainer):\n def _load_best_model(self):\n  super()._load_best_model()", []),
        ("self._own = other._own = os._exit", []),
    ],
)
def test_each_way_to_use_one_is_seen(code: str, found: list[str]) -> None:
    assert list(private_uses(ast.parse(code), {"_own", "_save", "_load_best_model"}, True)) == found


def test_no_class_overrides_a_private_method_of_a_library_but_the_trainers() -> None:
    found = {}
    for path in OUTSIDE:
        name = ".".join(["raytrain_nlp", *path.relative_to(ROOT).with_suffix("").parts])
        module = importlib.import_module(name.removesuffix(".__init__"))
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
            names = [
                key
                for key, value in vars(cls).items()
                if is_private(key) and inspect.isfunction(value) and any(key in vars(base) for base in bases)
            ]
            if left := [key for key in names if not (issubclass(cls, Trainer) and key in OVERRIDDEN)]:
                found[f"{cls.__module__}.{cls.__name__}"] = left
    assert found == {}
    assert issubclass(Seq2SeqTrainer, Trainer)
