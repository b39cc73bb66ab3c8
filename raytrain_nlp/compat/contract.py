"""Checks the names of other libraries that this package relies on without their being documented, so that an upgrade
which changes one says so.

    python -m raytrain_nlp.compat.contract      prints a line for each name that changed; exit code 1 where there is any

The table of names is in `private_names.py`, grouped by library.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from raytrain_nlp.compat.deepspeed import import_deepspeed
from raytrain_nlp.compat.names import FILE, INSTANCE, VALUE, Name
from raytrain_nlp.compat.private_names import NAMES
from raytrain_nlp.host.packages import package_folder

_LIBRARIES = ("ray", "torch", "transformers", "accelerate", "deepspeed", "optuna", "datasets")


def find_moved(names: Iterable[Name]) -> list[str]:
    """A line for each name that is not as expected in the installed libraries, e.g. `transformers.Trainer._save:
    signature is now (self)`.
    """
    return [line for name in names for line in _moved(name)]


def describe(path: str) -> str | None:
    """What a name is in the installed libraries, in the form of `Name.expected`; None where it is missing."""
    if "/" in path:
        return FILE if _file(path) is not None else None
    parts = path.split(".")
    module, left = _import_longest(parts)
    if module is None:
        return None
    found: Any = module
    for i, part in enumerate(left):
        if hasattr(found, part):
            found = getattr(found, part)
        elif i == len(left) - 1 and inspect.isclass(found) and _is_set(found, part):
            return INSTANCE
        else:
            return None
    return _kind(found)


def _moved(name: Name) -> list[str]:
    found = describe(name.path)
    if found is None:
        return [f"{name.path}: is missing"]
    if not _fits(found, name.expected):
        what = "signature is now" if found.startswith("(") and name.expected.startswith("(") else "is now"
        return [f"{name.path}: {what} {found}, was {name.expected}"]
    return [
        f"{name.path}: {module} has no `{text}` any more" for module, text in name.texts if text not in _source(module)
    ]


def _fits(found: str, expected: str) -> bool:
    if expected.startswith("(..., "):
        return set(expected[6:-1].split(", ")) <= set(found[1:-1].split(", "))
    return found == expected or expected == VALUE


def _import_longest(parts: list[str]) -> tuple[ModuleType | None, list[str]]:
    """The longest beginning of a dotted name that is a module, and the remaining parts of the name."""
    for count in range(len(parts), 0, -1):
        try:
            return importlib.import_module(".".join(parts[:count])), parts[count:]
        except ImportError:
            continue
    return None, parts


def _kind(value: Any) -> str:
    if isinstance(value, ModuleType):
        return "module"
    if inspect.isclass(value):
        return "class"
    if not callable(value):
        return type(value).__name__
    try:
        return _parameters(inspect.signature(value))
    except (TypeError, ValueError):  # compiled, without a signature
        return "callable"


def _parameters(signature: inspect.Signature) -> str:
    """Names of the parameters: `=` follows one with a default, `*` precedes those that are keyword-only."""
    shown, named = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            shown.append("*")
        named |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = "*" * (
            1 if parameter.kind is parameter.VAR_POSITIONAL else 2 if parameter.kind is parameter.VAR_KEYWORD else 0
        )
        shown.append(f"{stars}{parameter.name}{'=' if parameter.default is not parameter.empty else ''}")
    return f"({', '.join(shown)})"


def _is_set(cls: type, name: str) -> bool:
    """Does the code of a class, or of one of its bases, assign `self.name`?"""
    return any(name in _attributes(owner.__module__).get(owner.__name__, ()) for owner in cls.__mro__)


@cache
def _attributes(module: str) -> dict[str, set[str]]:
    """Class -> names that its code assigns on `self`, for the classes of a module."""
    found: dict[str, set[str]] = {}
    for owner in ast.walk(ast.parse(_source(module))):
        if isinstance(owner, ast.ClassDef):
            targets = (
                node for node in ast.walk(owner) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            )
            found[owner.name] = {
                target.attr for target in targets if isinstance(target.value, ast.Name) and target.value.id == "self"
            }
    return found


def _file(path: str) -> Path | None:
    package, _, rest = path.partition("/")
    try:
        file = package_folder(package) / rest
    except ImportError:
        return None
    return file if file.exists() else None


@cache
def _source(module: str) -> str:
    if "/" in module:
        file = _file(module)
        return file.read_text(encoding="utf-8") if file is not None else ""
    try:
        return inspect.getsource(importlib.import_module(module))
    except (ImportError, OSError, TypeError):
        return ""


def _versions() -> str:
    found = []
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            found.append(f"{library}: not installed")
    return ", ".join(found)


def main() -> int:
    """Print which names have moved. Returns 1 where there are any."""
    import_deepspeed()
    moved = find_moved(NAMES)
    print(f"{len(NAMES)} names that this package relies on, in {_versions()}:")
    print("\n".join(moved) or "all as expected")
    return int(bool(moved))


if __name__ == "__main__":
    sys.exit(main())
