"""Fields of a dataclass of an installed library, read from its source code without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

from pydantic import TypeAdapter

from raytrain_nlp.host.packages import package_folder

_BUILTIN_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, dict, list, tuple)}


def read_fields(
    package: str, file: str, cls: str, *, enums: Iterable[str] = (), names: dict[str, Any] | None = None
) -> dict[str, TypeAdapter[Any]]:
    """The type of every annotated field of a class, by the field's name, as a pydantic adapter that validates values.

    Args:
        package: the installed package.
        file: path of the source file in the package.
        cls: name of the class.
        enums: further files of the package; their enums become a choice of their values.
        names: types for other names that annotations use.
    """
    folder = package_folder(package)
    main = ast.parse((folder / file).read_text(encoding="utf-8"))
    known: dict[str, Any] = {
        "Any": Any,
        "Literal": Literal,
        "Optional": Optional,
        "Union": Union,
        **_BUILTIN_TYPES,
        **(names or {}),
    }
    choices = []
    for tree in (main, *(ast.parse((folder / name).read_text(encoding="utf-8")) for name in enums)):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "").endswith("Enum") for base in node.bases):
                values = [
                    item.value.value
                    for item in node.body
                    if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
                ]
                known[node.name] = Literal[tuple(values)]
                choices.append(node.name)
    fields = {}
    for node in next(item for item in main.body if isinstance(item, ast.ClassDef) and item.name == cls).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            try:
                fields[node.target.id] = TypeAdapter(_type_of(node.annotation, known, choices))
            except Exception:  # noqa: BLE001 - a type that cannot be read: any value is taken, the library's own check decides
                fields[node.target.id] = TypeAdapter(Any)
    return fields


_EMPTY: dict[str, ast.expr] = {"list": ast.List([], ast.Load()), "dict": ast.Dict([], [])}
"""Default factory -> the empty value that it makes, as source code."""


@dataclass(frozen=True)
class LibraryRemark:
    """The default and the help text that a library gives a field of a dataclass."""

    default: Any
    settled: bool
    """Is the default a plain value? Where it depends on something else, this is False and `default` is None."""
    help: str
    """The help in the field's metadata, on one line; may be empty."""


def read_remarks(package: str, file: str, cls: str) -> dict[str, LibraryRemark]:
    """The default and help of every field that a class defines by `field(...)`, by name. The arguments are those of
    `read_fields`.
    """
    tree = ast.parse((package_folder(package) / file).read_text(encoding="utf-8"))
    found = {}
    for node in next(item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == cls).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            arguments = {keyword.arg: keyword.value for keyword in node.value.keywords}
            metadata = arguments.get("metadata")
            entries = zip(metadata.keys, metadata.values) if isinstance(metadata, ast.Dict) else ()
            texts = [_literal(value) for key, value in entries if key is not None and _literal(key) == "help"]
            text = " ".join(str(texts[0]).split()) if texts and texts[0] else ""
            default = arguments.get("default", _EMPTY.get(ast.unparse(arguments.get("default_factory", node.target))))
            value = None if default is None else _literal(default)
            settled = default is not None and _is_literal(default)
            found[node.target.id] = LibraryRemark(value, settled, text)
    return found


def _literal(node: ast.expr) -> Any:
    return ast.literal_eval(node) if _is_literal(node) else None


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _type_of(node: ast.expr, known: dict[str, Any], choices: list[str]) -> Any:
    """The type that an annotation names. Raises `KeyError` or `TypeError` where the annotation contains a name that is
    not in `known`, or another construct.
    """
    if isinstance(node, ast.Constant):
        return (
            _type_of(ast.parse(node.value, mode="eval").body, known, choices)
            if isinstance(node.value, str)
            else node.value
        )
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.Tuple):
        return tuple(_type_of(item, known, choices) for item in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        if isinstance(node.left, ast.Name) and node.left.id in choices and getattr(node.right, "id", "") == "str":
            return known[
                node.left.id
            ]  # `IntervalStrategy | str` would let any string through: the enum's values are the truth
        # None on the left has no `|`
        return Union[_type_of(node.left, known, choices), _type_of(node.right, known, choices)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        if getattr(node.value, "id", "") == "Literal":
            values = ast.literal_eval(node.slice)
            return Literal[values if isinstance(values, tuple) else (values,)]
        return _type_of(node.value, known, choices)[_type_of(node.slice, known, choices)]
    raise TypeError(ast.unparse(node))
