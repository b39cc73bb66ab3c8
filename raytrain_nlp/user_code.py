"""The user's own code: found by `package.module:name`, and told from others' by its file."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.errors import InputError, Problem


@dataclass(frozen=True)
class UserObject:
    """A class or function of the user's; a plain value that travels to other processes and is imported there."""

    name: str
    """`package.module:name`."""
    where: str
    """The job's key that names it."""
    folder: str
    """Where modules are looked for besides what is installed: the driver's current directory, as `python -m` does."""

    def load(self) -> Any:
        """Import it. Raises `InputError`."""
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        module, _, attribute = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # whatever the user's module raises when it is imported
            what = f"cannot be imported ({self.name}: {describe(error)})"
            raise InputError(
                Problem(self.where, what, "Check the name; modules are looked for in the current directory.")
            ) from error
        return found

    def fingerprint(self) -> str:
        """Hash of the source of its module, and of all modules of the user's that this one imports, at any depth of its
        code or of theirs.

        What is installed is not read: the versions of what matters are part of the keys that a fingerprint is one of.
        """
        found = self.load()
        module = self.name.partition(":")[0]
        own = getattr(sys.modules[module], "__file__", None)  # installed or not
        sources = user_sources(module, self.folder) | (
            {module: Path(own).read_bytes()} if own and os.path.isfile(own) else {}
        )
        digest = hashlib.sha256(b"" if sources else repr(found).encode())
        for name, source in sorted(sources.items()):
            digest.update(f"{name}\0{len(source)}\0".encode() + source)
        return digest.hexdigest()[:16]


def user_sources(module: str, folder: str) -> dict[str, bytes]:
    """The source of a module, and of what it imports in turn, by module; of the user's own modules alone. Imports
    nothing.

    A package counts with its `__init__`. Of `from a import b`, `b` may be a module of `a`.
    """
    sources: dict[str, bytes] = {}
    wanted = [module]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if parent := name.rpartition(".")[0]:
            wanted.append(parent)
        if (file := _source_of(name, folder)) is not None:
            sources[name] = content = file.read_bytes()
            wanted += _imports(content, name if file.name == "__init__.py" else parent)
    return sources


def _source_of(module: str, folder: str) -> Path | None:
    """The file of a module of the user's; None for what is installed, built in, or not there."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        places = [f"{root}/{module.replace('.', '/')}" for root in (folder, *sys.path)]
        file = next(
            (
                found
                for place in places
                for found in (f"{place}.py", f"{place}/__init__.py")
                if is_users(found) and os.path.isfile(found)
            ),
            None,
        )
    return Path(file) if file and is_users(file) and os.path.isfile(file) else None


def _imports(source: bytes, package: str) -> list[str]:
    """Names of all that a source may import; `package` is what its relative imports begin at."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # what is imported only where it can be
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".") if node.level else []
            base = ".".join([*start[: len(start) - node.level + 1], *filter(None, [node.module])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
        elif (
            isinstance(node, ast.Call)
            and _is_import_call(node.func)
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.append(str(node.args[0].value))
    return names


def _is_import_call(function: ast.expr) -> bool:
    return getattr(function, "attr", getattr(function, "id", "")) in ("import_module", "__import__")


def describe(error: BaseException) -> str:
    """One line: the error, and the innermost place in code that is neither installed nor ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(frame.filename)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def is_users(file: str) -> bool:
    """Is a source file the user's own: not the interpreter's, not installed, not of this package?"""
    ours = __file__.rpartition("/")[0] + "/"
    return (
        not file.startswith(("<", ours, sys.base_prefix + "/lib/python"))
        and "site-packages" not in file
        and "dist-packages" not in file
    )
