"""What a job's label column means, found out before tokens are made: whether lists are multi-hot, and the names that
are declared.

Names come from `task.label_names`, else from a `ClassLabel` of the files, else, where the labels are numbers, from the
head that the model brings along. With names a row's label is kept by its name, and what is no label of theirs (-1 of an
unlabelled row) is a bad row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.labels import declared_names, is_integer, is_ragged, label_text, multi_hot_width
from raytrain_nlp.config.tasks import labelled
from raytrain_nlp.data.encode import apply_preprocess
from raytrain_nlp.data.reading.features import class_names
from raytrain_nlp.data.reading.readers import Row, read_rows
from raytrain_nlp.data.reading.sources import SourceFile, split_file
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.planning.heads import Head, find_head, names_of_numbers
from raytrain_nlp.planning.inputs import Files
from raytrain_nlp.tasks import build_task
from raytrain_nlp.user_code import UserObject

_SAMPLED = 1_000
_MOST_FILES = 64


def name_labels(job: TrainJob, files: Files, preprocess: UserObject | None) -> tuple[TrainJob, list[str]]:
    """The job with what its `task` leaves to the data, and what the user should know of it. Raises `InputError`."""
    column = build_task(job.task).label_column
    if column is None:
        return job, []
    section = labelled(job.task)
    sample = list(itertools.islice(_labels(files.train, column, preprocess), _SAMPLED))
    declared = _declared(job, files, column)
    if section.multi_hot is not False and not build_task(job.task).single_class and (width := multi_hot_width(sample)):
        return _with(job, label_names=_columns(job, declared, width), multi_hot=True), [
            f"the lists of '{column}' are read as multi-hot: {width} classes."
        ]
    if section.multi_hot is None and not build_task(job.task).single_class and is_ragged(sample):
        what = f"the lists of '{column}' hold only 0 and 1, but are of several lengths"
        raise InputError(
            Problem(
                "data.train",
                what,
                "Give each row a value for each class; or set task.multi_hot: false, if they name the classes 0 and 1.",
            )
        )
    if section.multi_hot:
        raise InputError(
            Problem(
                "task.multi_hot", f"the lists of '{column}' are not all of one length with 0 and 1 only", "Remove it."
            )
        )
    if section.label_names:
        return job, []
    texts = {
        label_text(one)
        for label in sample
        for one in (label if isinstance(label, list) else [label])
        if isinstance(one, (str, int, float))
    }
    if declared and texts <= {*declared_names(declared), "-1"}:
        return _with(job, label_names=declared), []
    head = find_head(job) if texts and all(map(is_integer, texts)) else None
    if head and names_of_numbers(head, sorted(texts)):
        return _with(job, label_names=head.names), [_told(head, column)]
    return job, []


def name_evaluated(job: TrainJob, files: list[SourceFile], labels: list[str], where: str) -> TrainJob:
    """The job of a run for other files: by the names they declare, where the run has found none and these are its
    labels. Raises `InputError`.
    """
    column = build_task(job.task).label_column
    if column is None:
        return job
    if given := labelled(job.task).label_names:
        check_declared(files, given, column, where)
        return job
    names = next((names for file in files[:_MOST_FILES] if (names := class_names(file, column))), None)
    if names is None or not set(names) <= set(labels):
        return job
    check_declared(files, names, column, where)
    return _with(job, label_names=names)


def check_declared(files: list[SourceFile], labels: list[str], column: str, where: str) -> None:
    """Raises `InputError` where a file numbers the classes otherwise than `labels`."""
    for file in files[:_MOST_FILES]:
        names = class_names(file, column)
        if names and names != labels and sorted(names) == sorted(labels):
            what = f"{file.path} numbers its classes {', '.join(names[:8])}, which are {', '.join(labels[:8])} here"
            raise InputError(Problem(where, what, "Cast the column to one ClassLabel, or to text."))


def _declared(job: TrainJob, files: Files, column: str) -> list[str] | None:
    """The names of the files' `ClassLabel`, which must be one. Raises `InputError`."""
    found: list[str] | None = None
    for where, split in (("data.train", files.train), ("data.validation", files.validation)):
        for file in split[:_MOST_FILES]:
            names = class_names(file, column)
            if names and found and names != found:
                what = f"{file.path} numbers its classes {', '.join(names[:8])}, other files {', '.join(found[:8])}"
                raise InputError(Problem(where, what, "Cast the columns to one ClassLabel, or to text."))
            found = names or found
    if found and (given := labelled(job.task).label_names):
        check_declared(files.train, given, column, "task.label_names")
    return found


def _columns(job: TrainJob, declared: list[str] | None, width: int) -> list[str]:
    """The classes of multi-hot lists. Raises `InputError` where those that are named are not so many."""
    names = labelled(job.task).label_names or declared
    if names and len(names) != width:
        raise InputError(
            Problem(
                "task.label_names",
                f"{len(names)} names for lists of {width} values",
                "Give a name for each value of a list.",
            )
        )
    head = None if names else find_head(job)
    return names or (
        head.names if head and head.is_named and len(head.names) == width else [str(number) for number in range(width)]
    )


def _labels(files: list[SourceFile], column: str, preprocess: UserObject | None) -> Iterator[Any]:
    function = preprocess.load() if preprocess else None
    for piece in itertools.chain.from_iterable(map(split_file, files)):
        for row in read_rows(piece):
            if isinstance(row, Row):
                values = apply_preprocess(function, row, piece.path) if function else row.values
                if values is not None and values.get(column) is not None:
                    yield values[column]


def _with(job: TrainJob, **values: Any) -> TrainJob:
    return job.model_copy(update={"task": job.task.model_copy(update=values)})


def _told(head: Head, column: str) -> str:
    pairs = ", ".join(f"{number} = {name}" for number, name in enumerate(head.names[:8]))
    return (
        f"the numbers of '{column}' are the classes of the head of {head.model}: "
        f"{pairs}{', ...' if len(head.names) > 8 else ''}."
    )
