"""`builtin:docstrings`: real text on any machine. Docstrings of installed libraries; the label is the library they come from.

    folder/
      train.jsonl         {"text", "label"} rows, about 85 %
      validation.jsonl    the others; the hash of a text decides, so copies are never on both sides

No library is imported: their sources are read with `ast`, in an order and up to an amount that depend on nothing but the sources.
The names of the libraries are masked in all texts, so that a classifier has to read the content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from raytrain_nlp.errors import InputError, Problem

SPLITS = ("train", "validation")
MASK = "LIB"

_FORMAT = 1  # raise it with every change to the texts, so that older folders are not taken for new ones
_LIBRARIES = {
    "numpy": "numpy", "pandas": "pandas", "torch": "torch", "scikit-learn": "sklearn",
    "transformers": "transformers", "datasets": "datasets", "mlflow": "mlflow", "ray": "ray",
}  # fmt: skip
"""Distribution (also the label) -> top-level module."""

_MIN_ROWS, _MAX_ROWS = 60, 600  # per library; one with less text is left out
_ENOUGH_TEXTS = 680  # stop reading a library here: more than _MAX_ROWS, since duplicates go
_MAX_BYTES = 5 << 19  # stop reading a library here, however little text there is: bounds the time
_MAX_FILE_BYTES, _DENSE_BYTES = 600 << 10, 2000
_MIN_CHARS, _MAX_CHARS, _MIN_WORDS = 40, 600, 6
_MAX_READ = 2000  # characters of a docstring to look at
_VALIDATION_PERCENT = 15

_SKIPPED_FOLDERS = {
    "tests", "test", "testing", "conftest", "vendor", "vendored", "externals", "extern", "thirdparty", "third_party", "thirdparty_files",
    "include", "bin", "share", "node_modules", "site-packages", "protos", "generated", "benchmarks", "asv_benchmarks", "templates",
    "f2py", "distutils",
}  # fmt: skip
_SKIPPED_FILES = re.compile(r"test_.*|.*_test|testing|testing_utils|conftest|setup|.*_pb2(_grpc)?|version|_version")

_NAMES = re.compile(
    r"""
    (?: (?<![\w-])[\w-]*(?:numpy|pandas|torch|scikit[-_ ]?learn|sklearn|mlflow|transformers|datasets)[\w-]*  # also in to_pandas, PyTorch
      | hugging[ -]?face
      | (?<![^\W_])ray(?![^\W_])\w*  # not in `array`
      | \braylet\w* | (?-i:\bRay(?=[A-Z])\w*)
      | \b(?:np|pd)\b
    )
    (?:[./]\w+)*  # the rest of a dotted name or of a path
    """,
    re.I | re.X,
)
_HEADING = re.compile(r"^[^\n]*\n[ \t]*([-=~^*#])\1{2,}[ \t]*$", re.M)
_SECTION = re.compile(r"^[ \t]*(Args?|Arguments|Parameters?|Returns?|Raises|Yields|Attributes|Notes?):{0,2}[ \t]*$", re.M | re.I)
_CODE = re.compile(r"^[ \t]*(Examples?|See also|References)\b[^\n]{0,10}$", re.M | re.I)
_DIRECTIVE = re.compile(r"^[ \t]*(\.\. |>>> |\.\.\. |@|#).*$", re.M)
_SIGNATURE = re.compile(r"[\w.]+\([^\n]*\)[ \t]*(->[^\n]*)?")
_WORD = re.compile(r"(?<!\S)\S*?[A-Za-z]{2}\S*")
_LEGAL = re.compile(r"copyright|licen[cs]ed? |SPDX|warranty", re.I)
_MARKUP = re.compile(r":(?:\w+:)?\w+:(?=`)|\{\w*\}|https?://\S+|[`*]+|<[/\w]+>|\\[A-Za-z]+|~(?=\w)|[-=~_]{3,}")


def build_docstrings(folder: Path) -> dict[str, Path]:
    """The files of both splits, made in `folder` unless they are there. The same library versions give the same bytes."""
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    if all(path.is_file() for path in paths.values()):
        return paths
    rows = _collect_rows()
    folder.mkdir(parents=True, exist_ok=True)
    for split, path in paths.items():
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows if _split_of(text) == split]
        _write_lines(path, lines)
    return paths


def docstrings_fingerprint() -> str:
    """What decides the content: the format and the versions of the libraries. Reads package metadata only."""
    return hashlib.sha256(json.dumps([_FORMAT, _installed()], sort_keys=True).encode()).hexdigest()[:16]


def _installed() -> dict[str, str]:
    """Version of each library that is installed."""
    versions = {}
    for distribution in _LIBRARIES:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _collect_rows() -> list[tuple[str, str]]:
    """(text, label) of all libraries in the order of the hashes of the texts, which mixes the labels."""
    texts = {label: _texts_of(_LIBRARIES[label]) for label in _installed()}
    owners: dict[str, set[str]] = {}
    for label, found in texts.items():
        for key in found:
            owners.setdefault(key, set()).add(label)
    rows = []
    labels = []
    for label, found in texts.items():
        own = sorted((text for key, text in found.items() if len(owners[key]) == 1), key=_hash_of)
        if len(own) >= _MIN_ROWS:
            labels.append(label)
            rows += [(text, label) for text in own[:_MAX_ROWS]]
    if len(labels) < 2:
        what = f"it needs the sources of two libraries with docstrings (found: {', '.join(labels) or 'none'})"
        raise InputError(Problem("builtin:docstrings", what, f"Install two of {', '.join(_LIBRARIES)}, or name your own files."))
    return sorted(rows, key=lambda row: _hash_of(row[0]))


def _texts_of(module: str) -> dict[str, str]:
    """Cleaned docstrings of one library, without copies: what identifies a text -> the text."""
    texts: dict[str, str] = {}
    size = 0
    for source in _dense_first(_source_files(module)):
        size += len(source)
        try:
            docs = list(_docs_in(_parse(source)))
        except (SyntaxError, ValueError, RecursionError):
            continue  # a library may ship templates, or syntax of a later Python
        for doc in docs:
            if text := _clean(doc):
                key = _key_of(text)
                texts[key] = min(text, texts.get(key, text))
        if len(texts) >= _ENOUGH_TEXTS or size >= _MAX_BYTES:
            break
    return texts


def _dense_first(paths: list[str]) -> Iterator[bytes]:
    """Sources with docstrings: first those with at most _DENSE_BYTES per docstring, since parsing code is what takes the time."""
    sparse = []
    for path in paths:
        source = _read(path)
        docs = source.count(b'"""') // 2
        if not docs or len(source) > _MAX_FILE_BYTES:
            continue
        if len(source) <= docs * _DENSE_BYTES:
            yield source
        else:
            sparse.append(path)
    for path in sparse:
        yield _read(path)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # a broken link, say: no text


def _source_files(module: str) -> list[str]:
    """The Python files of a library, in the order of the hashes of their paths: any first part of them is a fair sample."""
    try:
        spec = importlib.util.find_spec(module)  # of a top-level name: finds, does not import
    except (ImportError, ValueError):
        spec = None
    found = []
    for root in (spec.submodule_search_locations or []) if spec else []:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if _is_public_folder(name)]
            for name in names:
                if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(name[:-3]):
                    path = os.path.join(folder, name)
                    found.append((_hash_of(os.path.relpath(path, root).replace(os.sep, "/")), path))
    return [path for _, path in sorted(found)]


def _is_public_folder(name: str) -> bool:
    # numpy keeps its public functions in `_core`; other folders with an underscore are private or vendored
    return name == "_core" or not (name.startswith(("_", ".")) or name in _SKIPPED_FOLDERS)


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in somebody else's source
        return ast.parse(source)


def _docs_in(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module or class, of its public classes and functions, and texts given to `add_docstr` and `add_newdoc`."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (doc := ast.get_docstring(node)):
        yield doc
    if not isinstance(node, (ast.Module, ast.ClassDef)):
        return
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not child.name.startswith("_"):
                yield from _docs_in(child)
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _docs_given_to(child.value)


def _docs_given_to(call: ast.Call) -> Iterator[str]:
    """The text in `add_docstr(torch.abs, r'''...'''.format(...))` and `add_newdoc("numpy", "ndarray", ("T", '''...'''))`."""
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


def _clean(doc: str) -> str | None:
    """The first words of a docstring without markup, headings, signatures, licences and names of libraries; None if too little is left."""
    doc = _CODE.split(doc[:_MAX_READ], maxsplit=1)[0]
    for noise in (_HEADING, _SECTION, _DIRECTIVE):
        doc = noise.sub("", doc)
    words: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc):
        if not _SIGNATURE.fullmatch(paragraph.strip()) and not _LEGAL.search(paragraph):
            line = " ".join(_MARKUP.sub(" ", paragraph).split())  # one line first: a name may be broken in two
            words += _NAMES.sub(MASK, line).split()
        if sum(map(len, words)) + len(words) > _MAX_CHARS // 2:
            break
    text = _shorten(words)
    return text if len(text) >= _MIN_CHARS and len(_WORD.findall(text)) >= _MIN_WORDS else None


def _shorten(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS + 1].rpartition(" ")[0]


def _key_of(text: str) -> str:
    """What copies of a text share: its letters and digits. Stricter than equal text, so that no near copy is on both sides."""
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _split_of(text: str) -> str:
    return "validation" if int(_hash_of(_key_of(text))[:8], 16) % 100 < _VALIDATION_PERCENT else "train"


def _write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file so that a reader sees all of it or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
