"""The figures of SQuAD: exact match and F1 of texts, as Rajpurkar et al. 2016 define them (1.1), and with questions
that have no answer (Rajpurkar, Jia and Liang 2018: 2.0). From 0 to 100, under the names of the official evaluation
scripts (evaluate-v1.1.py, evaluate-v2.0.py).

No library that is kept computes both without a download: `evaluate` fetches a script, `transformers` 5 has dropped its
own, `torchmetrics` has 1.1 alone (a test compares with it).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
V1 = ("exact_match", "f1")
V2 = (
    "exact",
    "f1",
    *(f"{kind}_{name}" for kind in ("HasAns", "NoAns") for name in ("exact", "f1", "total")),
    *(f"best_{name}" for name in ("exact", "exact_thresh", "f1", "f1_thresh")),
)
"""Names of the figures; of V2 those of questions with and without an answer only where there are such."""


@dataclass(frozen=True)
class Answered:
    """A question that was answered."""

    truth: Sequence[str]
    """The right answers; none where it has none."""
    prediction: str
    """Empty: it is said to have none."""
    best: str | None = None
    """What the prediction would be, were every question to have an answer; None: the same."""
    null_score_diff: float = 0.0
    """By how much the score of no answer exceeds that of `best`."""


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, truth: str) -> float:
    return float(normalize(prediction) == normalize(truth))


def f1(prediction: str, truth: str) -> float:
    """F1 of the words of two texts as bags."""
    guess, right = normalize(prediction).split(), normalize(truth).split()
    same = sum((Counter(guess) & Counter(right)).values())
    return 2 * same / (len(guess) + len(right)) if same else 0.0


def figures_v1(questions: Sequence[Answered]) -> dict[str, float]:
    """Means over questions, each by the right answer that it is nearest to."""
    exact, overlap = (
        [max(score(question.prediction, truth) for truth in question.truth) for question in questions]
        for score in (exact_match, f1)
    )
    return {"exact_match": _percent(exact), "f1": _percent(overlap)}


def figures_v2(questions: Sequence[Answered], threshold: bool = True) -> dict[str, float]:
    """The same with questions that have no answer: right is to give none. `best_exact` and `best_f1` are what the
    threshold that is best for these questions would give, and `..._thresh` that threshold (of `null_score_diff`).

    Args:
        threshold: are there scores to choose a threshold by?
    """
    truths = [[text for text in question.truth if normalize(text)] for question in questions]
    scores = {
        name: np.array([_best(score, q.prediction, truth) for q, truth in zip(questions, truths, strict=True)])
        for name, score in (("exact", exact_match), ("f1", f1))
    }
    has = np.array([bool(question.truth) for question in questions])
    found = {name: _percent(values) for name, values in scores.items()}
    for kind, chosen in (("HasAns", has), ("NoAns", ~has)):
        if chosen.any():
            found |= {f"{kind}_{name}": _percent(values[chosen]) for name, values in scores.items()}
            found[f"{kind}_total"] = float(chosen.sum())
    if threshold:
        texts = [question.prediction if question.best is None else question.best for question in questions]
        differences = np.array([question.null_score_diff for question in questions])
        for name, score in (("exact", exact_match), ("f1", f1)):
            answered = np.array([_best(score, text, truth) for text, truth in zip(texts, truths, strict=True)])
            found[f"best_{name}"], found[f"best_{name}_thresh"] = _best_threshold(answered, has, differences)
    return found


def _best(score: Callable[[str, str], float], prediction: str, truth: list[str]) -> float:
    if not truth or not normalize(prediction):
        return float(not truth and not normalize(prediction))
    return max(score(prediction, text) for text in truth)


def _best_threshold(answered: np.ndarray, has: np.ndarray, differences: np.ndarray) -> tuple[float, float]:
    """The best mean score, and the threshold that gives it: a question is answered where its difference is not above
    it. Questions of equal difference are answered together.

    Args:
        answered: score of each question, were it answered; unanswered it has 1 where it has no answer, else 0.
    """
    order = np.argsort(differences, kind="stable")
    gains = np.cumsum(answered[order] - ~has[order])
    ends = np.flatnonzero(np.append(np.diff(differences[order]) > 0, True))
    best = ends[int(np.argmax(gains[ends]))]
    none = float((~has).mean())
    if gains[best] <= 0:  # none answered
        return 100 * none, float(np.nextafter(differences[order][0], -np.inf))
    return 100 * (none + float(gains[best]) / len(has)), float(differences[order][best])


def _percent(scores: Sequence[float] | np.ndarray) -> float:
    return 100 * float(np.mean(scores))
