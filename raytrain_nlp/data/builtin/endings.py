"""`builtin:docstrings/endings`: which of four texts follows the first sentence of a docstring? Rows {"context",
"ending0", ..., "ending3", "label"}.

The three wrong endings come from other docstrings of the same split. Each of them is the right ending of another row,
so that the endings alone tell nothing.
"""

from __future__ import annotations

from typing import Any

from raytrain_nlp.data.builtin.prose import hash_of, shorten
from raytrain_nlp.data.builtin.summaries import collect_summaries, summaries_origin

_FORMAT = 1  # raise it with every change to the rows
_ENDINGS, _MAX_CHARS = 4, 200


def collect_endings() -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits, in the order of the summaries from which they are made."""
    return {split: _rows_of(found) for split, found in collect_summaries().items()}


def endings_origin() -> list[Any]:
    """Everything that the rows depend on."""
    return [_FORMAT, summaries_origin()]


def _rows_of(summaries: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Each summary with its own text and those of the next three summaries. The summary's hash decides at which
    position the right one is.
    """
    rows = []
    for i, row in enumerate(summaries):
        texts = [
            shorten(summaries[(i + distance) % len(summaries)]["text"], _MAX_CHARS) for distance in range(_ENDINGS)
        ]
        right = int(hash_of(row["summary"])[:8], 16) % _ENDINGS
        ordered = [*texts[1 : right + 1], texts[0], *texts[right + 1 :]]
        endings = {f"ending{place}": text for place, text in enumerate(ordered)}
        rows.append({"context": row["summary"], **endings, "label": right})
    return rows
