"""Which spellings of a label mean the same: the canonical text of a label, and other texts that stand for a class.

- 1, 1.0, "1", "1.0", " 1 " and true are all `1`, whichever file they come from; 0 and false are `0`. Any other text
  stands for itself.
- Where all labels are words for true and false, every such word stands for one of the two, and so do 1 and 0: JSON's
  true, pandas' "True", 1.
- Where the classes have declared names (`task.label_names`, a `datasets.ClassLabel`, the head of a pretrained model)
  and no name is a number, an integer stands for the name at that index, as in `ClassLabel`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

_MOST = 0.95
"""Share of the label lists that must look like multi-hot lists for all of them to be read so; the others are bad rows.
"""
_WHOLE = re.compile(r"([+-]?\d{1,99})\.0+")
_TRUTHS = {
    spelling: truth
    for word, truth in {"0": False, "false": False, "1": True, "true": True}.items()
    for spelling in (word, word.capitalize(), word.upper())
}


def label_text(label: Any) -> str:
    """The canonical text of a label."""
    if isinstance(label, bool) or isinstance(label, (float, Decimal)) and is_whole(label):
        label = int(label)
    text = str(label).strip()
    return str(int(found[1])) if (found := _WHOLE.fullmatch(text)) else text


def is_whole(number: float | Decimal) -> bool:
    """Is it a whole number? Infinity and NaN are not."""
    return math.isfinite(number) and number == int(number)


def is_integer(text: str) -> bool:
    """Is the text a whole number in decimal digits, with or without a minus?"""
    return text.removeprefix("-").isdecimal()


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their ids: by number where all are integers, otherwise by text. Of several words for the
    same truth value one is kept.

    Args:
        labels: canonical texts, each once.
    """
    labels = list(labels)
    if len(truths := {_TRUTHS.get(label) for label in labels}) < len(labels) and None not in truths:
        numbers = {"0", "1"}.intersection(labels)
        labels = [str(int(truth is True)) for truth in truths] if numbers else [str(truth) for truth in truths]
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """For each canonical text that stands for a class, the id of the class.

    Args:
        labels: the classes, in the order of their ids.
    """
    places = {_TRUTHS.get(label): place for place, label in enumerate(labels)}
    words = (
        {word: places[truth] for word, truth in _TRUTHS.items() if truth in places}
        if None not in places and len(places) == len(labels)
        else {}
    )
    return words | {label: place for place, label in enumerate(labels)}


def declared_names(names: Sequence[str]) -> dict[str, str]:
    """For each canonical text that stands for a class, the class's declared name; an integer can stand for the name at
    that index.

    Args:
        names: the declared names, in the order of the ids.
    """
    numbers = {} if any(map(is_integer, names)) else {str(place): name for place, name in enumerate(names)}
    return numbers | {text: names[place] for text, place in label_ids(names).items()}


def multi_hot_width(lists: Iterable[Any]) -> int | None:
    """The number of classes, where label lists are multi-hot: of one length above 1, with only 0 and 1 in them, as
    numbers or truth values. Otherwise None. A few other lists (5 %) are taken for bad rows.
    """
    lists = list(lists)
    widths = Counter(len(row) for row in lists if isinstance(row, list) and is_multi_hot(row))
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    return width if width > 1 and count >= _MOST * len(lists) else None


def is_ragged(lists: Iterable[Any]) -> bool:
    """Are label lists multi-hot, but of different lengths? Read as lists of classes they would name a class twice."""
    lists = [row for row in lists if isinstance(row, list)]
    return (
        len({len(row) for row in lists}) > 1
        and all(map(is_multi_hot, lists))
        and any(len(row) > 1 and len(set(row)) < len(row) for row in lists)
    )


def is_multi_hot(row: list[Any]) -> bool:
    """Are all values of a label list 0 or 1, as numbers or truth values?"""
    return all(isinstance(value, (bool, int, float)) and value in (0, 1) for value in row)
