"""`builtin:NAME`: data that every machine can make by itself, so that any task can be tried without a download.

    cache/NAME-FINGERPRINT/
      train.jsonl  validation.jsonl     written once; the fingerprint covers everything that the rows depend on

The same versions of Python and of the libraries give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain_nlp.data.builtin.docstrings import collect_docstrings, docstrings_origin
from raytrain_nlp.data.builtin.endings import collect_endings, endings_origin
from raytrain_nlp.data.builtin.facts import fact_rows, facts_origin
from raytrain_nlp.data.builtin.names import name_rows, names_origin
from raytrain_nlp.data.builtin.number_preferences import preference_rows, preferences_origin
from raytrain_nlp.data.builtin.number_words import number_rows, numbers_origin
from raytrain_nlp.data.builtin.python_docs import collect_python_docs, python_docs_origin
from raytrain_nlp.data.builtin.standard_library import collect_modules, modules_origin
from raytrain_nlp.data.builtin.summaries import collect_summaries, summaries_origin
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.storage.atomic import replacing

PREFIX = "builtin:"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Builtin:
    """One source: `rows` makes the rows of both splits; `origin` tells, as JSON and quickly, everything that they
    depend on.
    """

    rows: Callable[[], dict[str, list[dict[str, Any]]]]
    origin: Callable[[], Any]


BUILTINS = {
    "docstrings": Builtin(collect_docstrings, docstrings_origin),
    "docstrings/endings": Builtin(collect_endings, endings_origin),
    "docstrings/modules": Builtin(collect_modules, modules_origin),
    "docstrings/summaries": Builtin(collect_summaries, summaries_origin),
    "facts": Builtin(fact_rows, facts_origin),
    "names": Builtin(name_rows, names_origin),
    "numbers": Builtin(number_rows, numbers_origin),
    "numbers/preferences": Builtin(preference_rows, preferences_origin),
    "python-docs": Builtin(collect_python_docs, python_docs_origin),
}


def build_builtin(spec: str, cache: Path, where: str) -> dict[str, Path]:
    """The files of both splits of `builtin:NAME`, by split. They are written below `cache` unless they exist.

    Args:
        where: the job's key that names the data, for error messages.

    Raises:
        InputError: there are no built-in data of this name, or this machine cannot make them.
    """
    name = spec.removeprefix(PREFIX)
    if name not in BUILTINS:
        todo = nearest(name, BUILTINS) or f"The names are {', '.join(BUILTINS)}."
        raise InputError(Problem(where, f"no built-in data has this name ({name!r})", todo))
    folder = cache / f"{name.replace('/', '-')}-{builtin_fingerprint(name)}"
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    if not all(path.is_file() for path in paths.values()):
        rows = BUILTINS[name].rows()
        folder.mkdir(parents=True, exist_ok=True)
        for split, path in paths.items():
            _write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows[split]])
    return paths


def builtin_fingerprint(name: str) -> str:
    """A hash of everything that the rows of a source depend on, for the name of their folder."""
    return hashlib.sha256(json.dumps([name, BUILTINS[name].origin()], sort_keys=True).encode()).hexdigest()[:16]


def _write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file so that readers see all of it or nothing."""
    with replacing(path, errors="replace", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
