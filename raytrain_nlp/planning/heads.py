"""The trained classification head of a pretrained model, and the order of a job's labels that fits its rows.

Each row of the head's weights stands for a class. A label is matched with the class of the same name, whatever its
case, as `run_glue.py` does, so the rows keep their meaning. Labels without a match are reported, or refused if the head
has too few or too many rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raytrain_nlp.config import TrainJob
from raytrain_nlp.config.labels import declared_names, is_integer, label_text
from raytrain_nlp.errors import InputError, Problem
from raytrain_nlp.tasks import build_task

_WHERE = "model.name_or_path"
_OTHER = "Name a model without a head, or one with a head for these labels."
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Head:
    """The classes of a trained head."""

    model: str
    """Name or folder of the model."""
    names: list[str]
    """The class of each row of the head, from `id2label` of the model's config."""

    @property
    def is_named(self) -> bool:
        """Do the classes have names of their own, and not transformers' default names (`LABEL_0`)?"""
        return not all(map(_UNNAMED.fullmatch, self.names))

    def shown(self) -> str:
        """The first names, for a message."""
        return f"{', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''}"


def find_head(job: TrainJob) -> Head | None:
    """The trained head that the job's model has for the job's task; None if the model gets a new, untrained head."""
    if not job.model.name_or_path:
        return None
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(
            job.model.name_or_path, revision=job.model.revision, trust_remote_code=job.model.trust_remote_code
        )
    except Exception:  # noqa: BLE001 - `check_model` reports a config that cannot be read
        return None
    cls = getattr(modeling_auto, build_task(job.task).auto_mapping).get(config.model_type)
    names = [label_text(config.id2label[place]) for place in sorted(config.id2label or {})]
    head = Head(job.model.name_or_path, names)
    trained = cls in config.architectures if config.architectures else head.is_named
    return head if trained and names else None


def names_of_numbers(head: Head, numbers: Sequence[str]) -> bool:
    """Are integer labels the ids of the head's classes, which have names of their own?

    Args:
        numbers: the labels, as text.
    """
    known = declared_names(head.names)
    return (
        head.is_named
        and not any(map(is_integer, head.names))
        and all(is_integer(number) and number in known for number in numbers)
    )


def check_width(head: Head, outputs: int) -> None:
    """Raises `InputError` unless the head has this number of outputs, for a task without classes such as regression."""
    if len(head.names) != outputs:
        raise InputError(
            Problem(
                _WHERE,
                f"the head of {head.model} has {len(head.names)} classes ({head.shown()}), the task needs {outputs} "
                f"output",
                _OTHER,
            )
        )


def follow_head(labels: list[str], head: Head) -> tuple[list[str], list[str]]:
    """The labels in the order of the head's rows.

    Returns:
        The names of all rows of the head in their order (the given labels, and the head's own names for classes that
        the data do not have), and notes for the user. The labels are unchanged if none can be matched and the head's
        classes have no names.

    Raises:
        InputError: the head has too few rows, or more than there are labels and not all labels have a match.
    """
    names = head.names
    if not (places := _places(labels, head)) and all(
        is_integer(label) and 0 <= int(label) < len(names) for label in labels
    ):
        names = [str(number) for number in range(len(names))]  # the labels are ids: 1 is `LABEL_1`
        places = {label: int(label) for label in labels}
    unknown = [label for label in labels if label not in places]
    model, rows = head.model, len(head.names)
    if len(labels) > rows or (unknown and len(labels) < rows):
        which = f": it does not know {', '.join(unknown[:8])}" if unknown and places else ""
        raise InputError(
            Problem(
                _WHERE,
                f"the head of {model} has {rows} classes ({head.shown()}), the data have {len(labels)} labels{which}",
                _OTHER,
            )
        )
    if not places and not head.is_named:
        return labels, []
    ordered: list[str | None] = [None] * rows
    for label, place in places.items():
        ordered[place] = label
    free = [place for place, label in enumerate(ordered) if label is None]
    notes = []
    if unknown:
        pairs = [(label, names[place]) for label, place in zip(unknown, free, strict=True)]
        told = "; ".join(f"'{label}' starts from the row of '{name}'" for label, name in pairs[:8])
        notes.append(f"{model} has a head with other classes ({head.shown()}): {told}.")
        for (label, _), place in zip(pairs, free, strict=True):
            ordered[place] = label
    elif free:
        missing = ", ".join(names[place] for place in free[:8])
        notes.append(
            f"no row has the label {missing}, a class of the head of {model}; the model keeps all its {rows} classes."
        )
    final = [label if label is not None else names[place] for place, label in enumerate(ordered)]
    if not notes and final != labels:
        notes.append(
            f"labels are in the order of the head of {model}: {', '.join(final[:8])}{', ...' if rows > 8 else ''}."
        )
    return final, notes


def _places(labels: Sequence[str], head: Head) -> dict[str, int]:
    """Label -> row of the head, for each label that is the name of a class. Case is ignored unless two classes differ
    by case only. Empty if two labels would get the same row.
    """
    exact = {name: place for place, name in enumerate(head.names)}
    lower = {name.lower(): place for name, place in exact.items()}
    if len(lower) < len(exact):
        lower = {}
    found = {label: exact.get(label, lower.get(label.lower(), -1)) for label in labels}
    found = {label: place for label, place in found.items() if place >= 0}
    return found if len(set(found.values())) == len(found) else {}
