"""From scores of first and last tokens to answers: what `postprocess_qa_predictions` of transformers' examples does.

The likeliest first and last tokens of each window are combined to stretches of the context; the best of all windows of
a question is its answer. Two things are otherwise than there: no answer is scored at the window's own CLS token,
wherever it stands, and padding is never among the likeliest tokens, so that an answer does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OUTSIDE, PADDING = -1, -2
"""In place of a character, for tokens outside of the context: of the question or special; padding."""


@dataclass(frozen=True)
class Window:
    """A feature: what the model said of its tokens, and where they stand. Every array has the shape [tokens]."""

    start_logits: np.ndarray
    end_logits: np.ndarray
    begins: np.ndarray
    """Where each token begins in the context, in characters; `OUTSIDE` or `PADDING`."""
    ends: np.ndarray
    """Where it ends there."""
    null: int
    """Which token stands for no answer."""

    def trimmed(self) -> Window:
        """Without padding."""
        kept = self.begins != PADDING
        null = self.null - int(kept.argmax())
        return Window(self.start_logits[kept], self.end_logits[kept], self.begins[kept], self.ends[kept], null)


@dataclass(frozen=True)
class Span:
    """A possible answer."""

    start: int | None
    """Its first character in the context; None: the question has no answer."""
    end: int | None
    """Behind its last one."""
    score: float
    """Sum of both logits."""
    probability: float = 0.0
    """Its part among all answers that are compared."""


def best_spans(windows: Sequence[Window], most: int, longest: int, null: bool) -> list[Span]:
    """The best answers of a question, the best first, with their probabilities; with `null` no answer is among them.

    Args:
        windows: all features of the question, in their order.
        most: first and last tokens that are combined in each of them, and answers in all.
        longest: tokens of an answer at most.
    """
    found: list[Span] = []
    nothing: Span | None = None
    for window in windows:
        score = float(window.start_logits[window.null] + window.end_logits[window.null])
        if nothing is None or score < nothing.score:
            nothing = Span(None, None, score)
        found += _spans_of(window, most, longest)
    kept = sorted(found, key=lambda span: -span.score)[:most]
    if null and nothing is not None:
        ranked = sorted([*found, nothing], key=lambda span: -span.score)[:most]
        kept = ranked if nothing in ranked else [*ranked, nothing]
    if not kept:
        return []
    scores = np.array([span.score for span in kept], dtype=np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    return [Span(span.start, span.end, span.score, float(share)) for span, share in zip(kept, shares, strict=True)]


def _spans_of(window: Window, most: int, longest: int) -> list[Span]:
    """The best of one window: from a token of the context to a later one, not too many tokens."""
    firsts, lasts = (
        np.argsort(logits, kind="stable")[: -most - 1 : -1] for logits in (window.start_logits, window.end_logits)
    )
    tokens = lasts[None, :] - firsts[:, None]
    inside = (window.begins[firsts] >= 0)[:, None] & (window.begins[lasts] >= 0)[None, :]
    scores = window.start_logits[firsts][:, None] + window.end_logits[lasts][None, :]
    first, last = np.nonzero(inside & (tokens >= 0) & (tokens < longest))
    best = np.argsort(-scores[first, last], kind="stable")[:most]
    return [
        Span(int(window.begins[firsts[i]]), int(window.ends[lasts[j]]), float(scores[i, j]))
        for i, j in zip(first[best], last[best], strict=True)
    ]


def answer(spans: list[Span], context: str, threshold: float | None, n_best: int) -> dict[str, Any]:
    """The prediction for a question, as plain values: its text, where it stands, its probability.

    Args:
        spans: what `best_spans` found.
        threshold: with questions that have no answer: none is given where its score exceeds that of the best answer by
            more; None: every question has one.
        n_best: further answers to tell.
    """
    best = next((span for span in spans if span.start is not None), None)
    nothing = next((span for span in spans if span.start is None), None)
    difference = nothing.score - best.score if nothing and best else 0.0
    chosen = nothing if threshold is not None and nothing and (best is None or difference > threshold) else best
    found = _told(chosen, context)
    if threshold is not None:
        found |= {"null_score_diff": difference, "best_non_null": _told(best, context)["prediction"]}
    if n_best:
        found["n_best"] = [_told(span, context) for span in spans if span is not chosen][:n_best]
    return found


def _told(span: Span | None, context: str) -> dict[str, Any]:
    if span is None or span.start is None:
        return {"prediction": "", "start": None, "end": None, "score": span.probability if span else 0.0}
    text = context[span.start : span.end]
    start = span.start + len(text) - len(text.lstrip())  # tokens may begin with the space before a word
    return {"prediction": text.strip(), "start": start, "end": start + len(text.strip()), "score": span.probability}
