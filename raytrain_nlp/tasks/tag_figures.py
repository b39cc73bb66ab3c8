"""Figures of tags, by seqeval: of entities where tags name them, else of the tags themselves.

`B-`, `I-`, `E-` and `S-` (also `M-`, `L-` and `U-`) begin, continue, end and are an entity; tags without them beside an
`O` name entities, too, whose words stand together. Tags of another kind (parts of speech) are classes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from raytrain_nlp.tasks.base import Metrics

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BIMELSU]-.")
_BARE = set("BIMELSU")
"""Prefixes without a type, where there is one kind of entity."""
_AS_SEQEVAL = {"M": "I", "L": "E", "U": "S"}
_OF_SCHEME = {
    "IOB1": "IOB", "IOB2": "IOB", "IOE1": "IOE", "IOE2": "IOE", "IOBES": "IOBES", "BILOU": "BILOU",
}  # fmt: skip
"""The first letters of tags."""
_NAMES = ("precision", "recall", "f1", "accuracy")
Tags = Sequence[Sequence[str]]


def entity_tags(labels: Sequence[str], scheme: str | None = None) -> dict[str, str] | None:
    """The tag of each label as seqeval reads it; None where labels name no entities."""
    bare = OUTSIDE in labels and set(labels) <= {OUTSIDE, *_BARE}
    if OUTSIDE not in labels and not any(map(_PREFIXED.match, labels)):
        return None
    if scheme is not None:
        return {label: label for label in labels}
    return {label: _read(label, bare) for label in labels}


def _read(label: str, bare: bool) -> str:
    if label == OUTSIDE:
        return label
    return _AS_SEQEVAL.get(label[0], label[0]) + label[1:] if bare or _PREFIXED.match(label) else f"I-{label}"


def unlike_scheme(labels: Sequence[str], scheme: str) -> str | None:
    """A label that is no tag of a scheme, or None."""
    letters = _OF_SCHEME[scheme]
    return next(
        (
            label
            for label in labels
            if label != OUTSIDE and not (label[:1] in letters and (label in _BARE or _PREFIXED.match(label)))
        ),
        None,
    )


def entities_in(tags: Sequence[str | None], labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each entity among the tags of a sentence; of tags that name none each word is one.
    A word without a tag (None) is in no entity.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    known = entity_tags(labels)
    if known is None:
        return [(tag, place, place) for place, tag in enumerate(tags) if tag is not None]
    return list(get_entities([OUTSIDE if tag is None else known[tag] for tag in tags]))


def tag_report(truth: Tags, guess: Tags, labels: Sequence[str], scheme: str | None) -> dict[str, Any]:
    """Precision, recall, f1-score and support of each type of entity (of each tag, where they name none) and their
    averages; `accuracy` of the tags.
    """
    known = entity_tags(labels, scheme)
    if known is None:
        return _report_of_classes(truth, guess)
    from seqeval import scheme as schemes
    from seqeval.metrics import accuracy_score, classification_report

    sides = [[[known[tag] for tag in row] for row in rows] for rows in (truth, guess)]
    strict = {"mode": "strict", "scheme": getattr(schemes, scheme)} if scheme else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that one side lacks: their figures are 0
        report = classification_report(*sides, output_dict=True, zero_division=0, **strict)
    found: dict[str, Any] = {
        name: {key: float(value) for key, value in figures.items()} for name, figures in report.items()
    }
    return {**found, "accuracy": float(accuracy_score(*sides))}


def _report_of_classes(truth: Tags, guess: Tags) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, classification_report

    sides = [[tag for row in rows for tag in row] for rows in (truth, guess)]
    report = classification_report(*sides, output_dict=True, zero_division=0)
    return {**report, "accuracy": float(accuracy_score(*sides))}


def tag_metrics(report: dict[str, Any], labels: Sequence[str], by_type: bool) -> Metrics:
    """Precision, recall, F1 and accuracy: of all entities together, or the mean over tags that name none. `by_type`:
    also of each type, by the names of run_ner.py.
    """
    averages = [name for name in report if name.endswith(" avg")]
    whole = report["macro avg" if entity_tags(labels) is None else "micro avg"]
    figures = {
        **dict(zip(_NAMES, (whole["precision"], whole["recall"], whole["f1-score"]))),
        "accuracy": report["accuracy"],
    }
    if not by_type:
        return figures
    found = {f"overall_{name}": value for name, value in figures.items()}
    for name, of in report.items():
        if name not in averages and isinstance(of, dict):
            of_type = (of["precision"], of["recall"], of["f1-score"], of["support"])
            found |= {f"{name}_{key}": value for key, value in zip((*_NAMES[:3], "number"), of_type, strict=True)}
    return {**figures, **found}


def tag_metric_names(labels: Sequence[str] | None, by_type: bool) -> tuple[str, ...]:
    """The names of `tag_metrics`; without `labels` types are `*`."""
    if not by_type:
        return _NAMES
    known = None if labels is None else entity_tags(labels)
    types = ["*"]
    if labels is not None:
        types = sorted({tag[2:] or "_" for tag in known.values() if tag != OUTSIDE} if known else labels)
    return (
        *_NAMES,
        *(f"overall_{name}" for name in _NAMES),
        *(f"{name}_{figure}" for name in types for figure in (*_NAMES[:3], "number")),
    )
