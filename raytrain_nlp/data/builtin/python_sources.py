"""Docstrings in installed Python sources, read with `ast`, so that nothing is imported. The order depends on nothing
but the sources.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from raytrain_nlp.data.builtin.prose import hash_of

DENSE_BYTES = 2000

_MAX_FILE_BYTES = 600 << 10
_SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "conftest",
    "vendor",
    "vendored",
    "externals",
    "extern",
    "thirdparty",
    "third_party",
    "thirdparty_files",
    "include",
    "bin",
    "share",
    "node_modules",
    "site-packages",
    "protos",
    "generated",
    "benchmarks",
    "asv_benchmarks",
    "templates",
    "f2py",
    "distutils",
}
_SKIPPED_FILES = re.compile(r"test_.*|.*_test|testing|testing_utils|conftest|setup|.*_pb2(_grpc)?|version|_version")
_NOT_THE_STANDARD_LIBRARY = {
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
}
"""Folders below the standard library that belong to others, are programs, or are read by `python_docs.py`."""


def library_files(module: str) -> list[str]:
    """The public Python files of an installed library, sorted by the hashes of their paths, so that any first part of
    them is a fair sample.
    """
    try:
        spec = importlib.util.find_spec(module)  # finds a top-level module without importing it
    except (ImportError, ValueError):
        spec = None
    roots = (spec.submodule_search_locations or []) if spec else []
    return _by_hash([file for root in roots for file in _files_in(root)])


def standard_library_files() -> list[str]:
    """The Python files of the standard library, sorted by the hashes of their paths."""
    return _by_hash(_files_in(sysconfig.get_path("stdlib"), _NOT_THE_STANDARD_LIBRARY))


def dense_first(paths: Iterable[str]) -> Iterator[bytes]:
    """The content of files that have docstrings. Those with at most DENSE_BYTES per docstring come first, because
    parsing code takes most of the time.
    """
    sparse = []
    for path in paths:
        source = _read(path)
        if _is_dense(source, DENSE_BYTES):
            yield source
        elif _is_dense(source, _MAX_FILE_BYTES):
            sparse.append(path)
    for path in sparse:
        yield _read(path)


def dense_only(paths: Iterable[str], bytes_per_doc: int = DENSE_BYTES) -> Iterator[bytes]:
    """The content of files that have at most `bytes_per_doc` bytes per docstring."""
    return (source for source in map(_read, paths) if _is_dense(source, bytes_per_doc))


def docs_in(source: bytes, private: bool = False) -> list[str]:
    """The docstrings of a module, its classes and its functions, and texts given to `add_docstr` and `add_newdoc`.

    Args:
        private: include names that begin with an underscore.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's source
            return list(_docs_of(ast.parse(source), private))
    except (SyntaxError, ValueError, RecursionError):
        return []  # a library may contain templates, or the syntax of a later Python


def _by_hash(files: Iterable[tuple[str, str]]) -> list[str]:
    return [path for _, path in sorted((hash_of(name), path) for name, path in files)]


def _files_in(root: str, skipped: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """(path below `root`, full path) of each file that is neither private nor a test nor generated."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_public_folder(name) and name not in skipped]
        for name in names:
            if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(name[:-3]):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, root).replace(os.sep, "/"), path


def _is_public_folder(name: str) -> bool:
    # numpy keeps its public functions in `_core`; other folders with an underscore are private or vendored
    return name == "_core" or not (name.startswith(("_", ".")) or name in _SKIPPED_FOLDERS)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # e.g. a broken link


def _is_dense(source: bytes, bytes_per_doc: int) -> bool:
    docs = source.count(b'"""') // 2
    return docs > 0 and len(source) <= min(_MAX_FILE_BYTES, docs * bytes_per_doc)


def _docs_of(node: ast.AST, private: bool) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
        doc := ast.get_docstring(node)
    ):
        yield doc
    if not isinstance(node, (ast.Module, ast.ClassDef)):
        return
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if private or not child.name.startswith("_"):
                yield from _docs_of(child, private)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _docs_given_to(child.value)


def _docs_given_to(call: ast.Call) -> Iterator[str]:
    """The text in calls such as `add_docstr(torch.abs, r'''...'''.format(...))` and `add_newdoc("numpy", "ndarray",
    ("T", '''...'''))`.
    """
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name.startswith("add_") and "doc" in name and call.args:
        doc = call.args[-1]
        if isinstance(doc, ast.Tuple) and doc.elts:
            doc = doc.elts[-1]
        while isinstance(doc, ast.Call) and isinstance(doc.func, ast.Attribute):
            doc = doc.func.value
        while isinstance(doc, ast.BinOp):
            doc = doc.left
        if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
            yield inspect.cleandoc(doc.value)
