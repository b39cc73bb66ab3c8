"""What the values of a job's label column mean, found out before rows are tokenized: whether lists are multi-hot, and
the names of the classes.

Names come from `task.label_names`, else from a `ClassLabel` feature of the files, else, if the labels are integers,
from the trained head of the model. If there are names, tokenizing stores a row's label by name, and a row with any
other label (such as -1 for an unlabelled row) is a bad row.
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
"""Training rows with a label whose values are looked at."""
_MOST_FILES = 64
"""Files of a split whose features are read."""


def name_labels(job: TrainJob, files: Files, preprocess: UserObject | None) -> tuple[TrainJob, list[str]]:
    """The job with `label_names` and `multi_hot` of its `task` filled in from the data, and notes for the user.

    Args:
        preprocess: the user's `trainer.preprocess`, through which the rows pass first.

    Raises:
        InputError: the files contradict each other or the job, or lists of 0 and 1 are of several lengths.
    """
    column = build_task(job.task).label_column
    if column is None:
        return job, []
    section = labelled(job.task)
    sample = list(itertools.islice(_labels(files.train, column, preprocess), _SAMPLED))
    declared = _declared(job, files, column)
    if section.multi_hot is not False and not build_task(job.task).single_class and (width := multi_hot_width(sample)):
        return _with(job, label_names=_multi_hot_names(job, declared, width), multi_hot=True), [
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
        return _with(job, label_names=head.names), [_head_note(head, column)]
    return job, []


def name_evaluated(job: TrainJob, files: list[SourceFile], labels: list[str], where: str) -> TrainJob:
    """A run's job for the evaluation of other files. If the run's own data had no names for the classes and these files
    have (a `ClassLabel`), their names are used, provided that they are labels of the run.

    Args:
        labels: the labels of the run.
        where: what problems name as their place.

    Raises:
        InputError: a file numbers the classes differently.
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
    """Raises `InputError` if the `ClassLabel` of a file has the names of `labels` in another order."""
    for file in files[:_MOST_FILES]:
        names = class_names(file, column)
        if names and names != labels and sorted(names) == sorted(labels):
            what = f"{file.path} numbers its classes {', '.join(names[:8])}, which are {', '.join(labels[:8])} here"
            raise InputError(Problem(where, what, "Cast the column to one ClassLabel, or to text."))


def _declared(job: TrainJob, files: Files, column: str) -> list[str] | None:
    """The names of the files' `ClassLabel`; None if no file has one. Raises `InputError` if two files differ, or number
    the classes differently than `task.label_names`.
    """
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


def _multi_hot_names(job: TrainJob, declared: list[str] | None, width: int) -> list[str]:
    """The name of each value of a multi-hot list of `width` values: those of the job or the files, else of the model's
    head, else numbers. Raises `InputError` if the job or the files name another number of classes.
    """
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
    """The values of the label column in the files' rows, after the user's `preprocess`; rows without one are left
    out.
    """
    function = preprocess.load() if preprocess else None
    for piece in itertools.chain.from_iterable(map(split_file, files)):
        for row in read_rows(piece):
            if isinstance(row, Row):
                values = apply_preprocess(function, row, piece.path) if function else row.values
                if values is not None and values.get(column) is not None:
                    yield values[column]


def _with(job: TrainJob, **values: Any) -> TrainJob:
    """The job with other values in its `task` section."""
    return job.model_copy(update={"task": job.task.model_copy(update=values)})


def _head_note(head: Head, column: str) -> str:
    """Tells the user which class of the head each number of the label column is."""
    pairs = ", ".join(f"{number} = {name}" for number, name in enumerate(head.names[:8]))
    return (
        f"the numbers of '{column}' are the classes of the head of {head.model}: "
        f"{pairs}{', ...' if len(head.names) > 8 else ''}."
    )
