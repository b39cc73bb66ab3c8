"""Finds the files that a job names and checks them, before any large library is imported. All problems are reported at
once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.data import sources_of
from raytrain_nlp.data.builtin import PREFIX, build_builtin
from raytrain_nlp.data.reading.delimited import repeated_columns
from raytrain_nlp.data.reading.readers import Row, read_rows
from raytrain_nlp.data.reading.sources import SourceFile, find_files, split_file
from raytrain_nlp.errors import InputError, Problem, nearest
from raytrain_nlp.modeling.tokenizer import check_local_model, looks_local
from raytrain_nlp.modeling.weight_files import check_weights
from raytrain_nlp.paths import cache_dir
from raytrain_nlp.storage.hub import check_hub_names
from raytrain_nlp.tasks import build_task

_SEARCHED_BYTES, _LEAST_BYTES = 64 << 20, 1 << 20
"""Bytes that `check_free` reads of all JSON files together, and at least of each."""
_PREFIX = "Give the new ones a prefix, e.g. --prefix model_."


@dataclass(frozen=True)
class Files:
    """The files of a job's splits."""

    train: list[SourceFile]
    validations: dict[str, list[SourceFile]]
    """Files by split: `validation`, or `validation.NAME` for each of several validation sets."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Name of a source -> paths of its training files, for a job that mixes several sources; else empty."""

    @property
    def validation(self) -> list[SourceFile]:
        """The files of all validation sets."""
        return [file for files in self.validations.values() for file in files]

    def bytes_before(self, streaming: bool) -> int:
        """Bytes of the files that are tokenized before training begins; streamed training files are not among them."""
        return sum(file.size for file in [*([] if streaming else self.train), *self.validation])


def find_job_files(job: TrainJob, storage: Path, trains: bool = True) -> Files:
    """Find the files of a job and check them: existence, format, columns, and the model's weights.

    Args:
        storage: the job's storage path, where rows of `builtin:` sources are written.
        trains: whether the job will load the weights; a plan can be made without them.

    Raises:
        InputError: with the problems of all files.
    """
    problems: list[Problem] = check_hub_names(_hub_names(job))
    unknown = {problem.where for problem in problems}
    found: dict[str, list[SourceFile]] = {}
    for split in ("train", *split_names(job)):
        if f"data.{split.partition('.')[0]}" in unknown:
            continue
        try:
            found[split] = find_split_files(job, split, storage)
        except InputError as error:
            problems += error.problems
    if job.model.name_or_path:
        problems += _problems_of(
            functools.partial(
                check_local_model, job.model.name_or_path, "model.name_or_path", tokenizer=job.model.tokenizer is None
            )
        )
        problems += check_weights(job.model.name_or_path, "model.name_or_path", trains, adapter=job.lora is not None)
    if job.model.tokenizer and job.model.tokenizer != "train":
        problems += _problems_of(
            functools.partial(check_local_model, job.model.tokenizer, "model.tokenizer", tokenizer=True)
        )
    sources: dict[str, list[str]] = {}
    if not problems:
        sources = {
            source.label: [file.path for file in _files_of(source.paths, "train", storage, "data.train")]
            for source in job.data.train_sources()
        }
        problems += _shared_files(sources)
    if problems:
        raise InputError(problems)
    return Files(found.pop("train"), found, sources)


def _shared_files(sources: dict[str, list[str]]) -> Iterator[Problem]:
    """A problem for each file that two sources of a mixture have in common."""
    owner: dict[str, str] = {}
    for name, paths in sources.items():
        for path in paths:
            if owner.setdefault(path, name) != name:
                what = f"has {path} in two sources ({owner[path]} and {name})"
                yield Problem("data.train", what, "Keep it in one of them.")


def split_names(job: TrainJob) -> list[str]:
    """The names of a job's validation splits: `validation`, or `validation.NAME` for each of several sets."""
    return [f"validation.{name}" if name else "validation" for name in job.data.validation_sets()]


def _hub_names(job: TrainJob) -> dict[str, tuple[str, str | None]]:
    """Models, tokenizers and datasets that the job takes from the hub: key of the job -> name and revision."""
    model = job.model
    given = {
        "model.name_or_path": model.name_or_path,
        "model.tokenizer": model.tokenizer if model.tokenizer != "train" else None,
    }
    names = {
        where: (name, model.revision if where == "model.name_or_path" else None)
        for where, name in given.items()
        if name and not looks_local(name)
    }
    for split in ("train", "validation"):
        names |= {
            f"data.{split}": (spec, None) for spec in sources_of(getattr(job.data, split)) if spec.startswith("hf://")
        }
    return names


def find_split_files(job: TrainJob, split: str, storage: Path, where: str | None = None) -> list[SourceFile]:
    """The files of one split. The columns that the task needs are checked.

    Args:
        split: `train`, `validation` or `validation.NAME`.
        where: what problems name as their place, such as `--data`; default: the split's key of the job.

    Raises:
        InputError: files are missing, cannot be read, or lack a column.
    """
    where = where or f"data.{split}"
    files = _files_of(sources_of(job.data.source_of(split)), split, storage, where)
    if problems := check_repeated(
        files, None if job.trainer.preprocess else build_task(job.task).required_columns(), where
    ):
        raise InputError(problems)
    if not job.trainer.preprocess and (
        problems := check_columns(files, build_task(job.task).required_columns(), where)
    ):  # `trainer.preprocess` may make the columns
        raise InputError(problems)
    return files


def _files_of(specs: list[str], split: str, storage: Path, where: str) -> list[SourceFile]:
    return find_files([_builtin(spec, split, storage, where) for spec in specs], where)


def _builtin(spec: str, split: str, storage: Path, where: str) -> str:
    """For `builtin:NAME` the file with this split's rows, which is made if it does not exist; else `spec` itself."""
    return (
        str(build_builtin(spec, cache_dir(storage, "sources"), where)[split.partition(".")[0]])
        if spec.startswith(PREFIX)
        else spec
    )


def check_columns(files: list[SourceFile], required: list[str], where: str) -> list[Problem]:
    """A problem for each required column that none of the first 50 rows of a file has. Rows that lack a column which
    others have are quarantined later.
    """
    problems = []
    for file in files[:64]:
        first = next(split_file(file), None)
        rows = [row.values for row in itertools.islice(read_rows(first), 50) if isinstance(row, Row)] if first else []
        present = {column for row in rows for column in row}
        problems += [
            Problem(
                where,
                f"no column '{column}' in {file.path} (columns: {', '.join(sorted(present))})",
                nearest(column, present) or "Correct the task's columns.",
            )
            for column in required
            if rows and column not in present
        ]
    return problems


def check_choice(files: list[SourceFile], choice: tuple[str, ...], where: str) -> list[Problem]:
    """A problem for each file whose first rows have none of the columns of `choice`, of which one is needed."""
    missing = [[check_columns([file], [name], where) for name in choice] for file in files[:64] if choice]
    return [problem for of_names in missing if all(of_names) for problem in of_names[0]]


def check_repeated(files: list[SourceFile], required: list[str] | None, where: str) -> list[Problem]:
    """A problem for each column that the header of a CSV or TSV file names more than once.

    Args:
        required: the columns that the task reads; None: all. Other repeated columns are no problem: each is kept, under
            the name that pandas would give it.
    """
    found = [
        (file.path, name)
        for file in files[:64]
        if file.format in ("csv", "tsv")
        for name in repeated_columns(file.path, file.format)
    ]
    what = "Rename or remove one of them."
    return [
        Problem(where, f"the column '{name}' stands more than once in {path}", what)
        for path, name in found
        if required is None or name in required
    ]


def check_free(files: list[SourceFile], added: list[str], where: str) -> list[Problem]:
    """A problem for each column of the input that has the name of a column which `predict` adds.

    The first 64 MB of JSON files are read, and at least 1 MB of each; of other formats the header or first row.

    Args:
        added: names of the added columns.
    """
    problems, left = [], _SEARCHED_BYTES
    for file in files:
        taken = sorted(set(added) & _columns(file, left))
        left = max(left - file.size, _LEAST_BYTES)
        problems += [
            Problem(where, f"has a column '{name}' already ({file.path}), where predictions would go", _PREFIX)
            for name in taken
        ]
    return problems


def _columns(file: SourceFile, most_bytes: int) -> set[str]:
    """The columns of a file: those of its header or first row, or for JSON those of the rows in about `most_bytes`."""
    by_header = file.format not in ("json", "jsonl")
    found: set[str] = set()
    for piece in itertools.islice(
        split_file(file, _LEAST_BYTES), 1 if by_header else max(most_bytes // _LEAST_BYTES, 1)
    ):
        for row in itertools.islice(read_rows(piece), 1 if by_header else None):
            found |= row.values.keys() if isinstance(row, Row) else set()
    return found


def _problems_of(check: Callable[[], None]) -> list[Problem]:
    try:
        check()
    except InputError as error:
        return error.problems
    return []
