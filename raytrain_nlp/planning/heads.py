"""The head of a pretrained classifier: which classes its rows are, and in what order a job's labels meet them.

A label is matched with the class of its name, as `run_glue.py` does (case does not count), so that no row of the head
changes its meaning; what cannot be matched is told, or refused where the head has too few or too many rows.
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
    """The classes of a trained head, one for each of its rows."""

    model: str
    names: list[str]

    @property
    def is_named(self) -> bool:
        """Else its names are those transformers gives by itself."""
        return not all(map(_UNNAMED.fullmatch, self.names))

    def shown(self) -> str:
        return f"{', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''}"


def find_head(job: TrainJob) -> Head | None:
    """The head that the job's model brings along for the job's kind of task; None where it gets a new one."""
    if not job.model.name_or_path:
        return None
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(
            job.model.name_or_path, revision=job.model.revision, trust_remote_code=job.model.trust_remote_code
        )
    except Exception:  # noqa: BLE001 - told by `check_model`
        return None
    cls = getattr(modeling_auto, build_task(job.task).auto_mapping).get(config.model_type)
    names = [label_text(config.id2label[place]) for place in sorted(config.id2label or {})]
    head = Head(job.model.name_or_path, names)
    trained = cls in config.architectures if config.architectures else head.is_named
    return head if trained and names else None


def names_of_numbers(head: Head, numbers: Sequence[str]) -> bool:
    """Are labels that are numbers the places of the head's named classes?"""
    known = declared_names(head.names)
    return (
        head.is_named
        and not any(map(is_integer, head.names))
        and all(is_integer(number) and number in known for number in numbers)
    )


def check_width(head: Head, outputs: int) -> None:
    """Raises `InputError` where a head without classes has not so many outputs."""
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
    """Labels in the order of the head's rows, and what the user should know of it. Raises `InputError`."""
    names = head.names
    if not (places := _places(labels, head)) and all(
        is_integer(label) and 0 <= int(label) < len(names) for label in labels
    ):
        names = [str(number) for number in range(len(names))]  # ids, as `LABEL_1` is 1
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
    """The row of the head for each label it knows by name; case does not count where it tells no two classes apart."""
    exact = {name: place for place, name in enumerate(head.names)}
    lower = {name.lower(): place for name, place in exact.items()}
    if len(lower) < len(exact):
        lower = {}
    found = {label: exact.get(label, lower.get(label.lower(), -1)) for label in labels}
    found = {label: place for label, place in found.items() if place >= 0}
    return found if len(set(found.values())) == len(found) else {}
