"""Fields of a dataclass of an installed library, read from its source as text: the truth, without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any, Literal, Optional, Union

from pydantic import TypeAdapter

from raytrain_nlp.host.packages import package_folder

_BUILTIN_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, dict, list, tuple)}


def read_fields(package: str, file: str, cls: str, *, enums: Iterable[str] = (), names: dict[str, Any] | None = None) -> dict[str, TypeAdapter]:
    """Name -> type of every annotated field of class `cls` in `file` of a package.

    `enums` are further files of the package whose enums are choices of their values; `names` gives types for other names.
    """
    folder = package_folder(package)
    main = ast.parse((folder / file).read_text(encoding="utf-8"))
    known: dict[str, Any] = {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union, **_BUILTIN_TYPES, **(names or {})}
    choices = []
    for tree in (main, *(ast.parse((folder / name).read_text(encoding="utf-8")) for name in enums)):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "").endswith("Enum") for base in node.bases):
                values = [item.value.value for item in node.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)]
                known[node.name] = Literal[tuple(values)]
                choices.append(node.name)
    fields = {}
    for node in next(item for item in main.body if isinstance(item, ast.ClassDef) and item.name == cls).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            for enum in choices:  # `IntervalStrategy | str` would let any string through: the enum's values are the truth
                annotation = annotation.replace(f"{enum} | str", enum)
            try:
                fields[node.target.id] = TypeAdapter(eval(annotation, {"__builtins__": {}}, known))
            except Exception:  # a type we cannot read: take any value, the library's own check decides
                fields[node.target.id] = TypeAdapter(Any)
    return fields
