"""Figures of vectors: how well anchors find their positives among all documents, as sentence-transformers'
InformationRetrievalEvaluator has them, and how well similarities follow scores, as its EmbeddingSimilarityEvaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain_nlp.tasks.base import Metrics
from raytrain_nlp.tasks.similarity.losses import all_pairs, pairwise

_AT = (1, 3, 5, 10)
_RECALL, _MRR, _NDCG, _MAP = 10, 10, 10, 100
_SCORES = 1 << 24
"""Similarities that are computed at once."""
RETRIEVAL = (
    f"ndcg@{_NDCG}", f"mrr@{_MRR}", f"map@{_MAP}", *(f"accuracy@{k}" for k in _AT), f"recall@{_RECALL}",
)  # fmt: skip
"""Names of the figures, the first one first, without that of the similarity before them."""


def number_texts(rows: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """Numbers of the texts of rows, equal for equal tokens, in the order in which they occur: int64 [rows, texts].

    Args:
        rows: of each row the tokens of its texts, one text behind the other.
        lengths: of each row the tokens of each text.
    """
    known: dict[bytes, int] = {}
    return np.array(
        [
            [known.setdefault(part.tobytes(), len(known)) for part in np.split(row, np.cumsum(sizes)[:-1])]
            for row, sizes in zip(rows, lengths, strict=True)
        ],
        dtype=np.int64,
    )


def rank_positives(vectors: np.ndarray, texts: np.ndarray, similarity: str) -> np.ndarray:
    """The place of each row's positive among all documents in the order of their similarity to the row's anchor, from
    0: int64 [rows]. Documents are the different positives and negatives of all rows; of equally similar ones the one
    that occurs earlier comes first. One that is not finite stands behind all of them.

    Args:
        vectors: float32 [rows, texts, dimensions].
        texts: as `number_texts`.
    """
    import torch

    shown = texts[:, 1:].ravel()
    _, first = np.unique(shown, return_index=True)
    first.sort()
    documents = torch.from_numpy(np.ascontiguousarray(vectors[:, 1:].reshape(len(shown), -1)[first]))
    places = {int(number): place for place, number in enumerate(shown[first])}
    own = torch.tensor([places[int(number)] for number in texts[:, 1]])
    anchors, ranks = torch.from_numpy(np.ascontiguousarray(vectors[:, 0])), []
    for start in range(0, len(anchors), max(_SCORES // len(documents), 1)):
        part = slice(start, start + max(_SCORES // len(documents), 1))
        scores = all_pairs(anchors[part], documents, similarity)
        right = scores.gather(1, own[part, None])
        before = ~(scores <= right)  # also where one of them is NaN
        before |= (scores == right) & (torch.arange(len(documents)) < own[part, None])
        ranks.append(before.sum(1).numpy())
    return np.concatenate(ranks)


def retrieval_figures(texts: np.ndarray, ranks: np.ndarray, similarity: str) -> Metrics:
    """The figures of all different anchors, for each of which the positives of all its rows are right.

    Args:
        texts: as `number_texts`.
        ranks: as `rank_positives`.
    """
    _, rows = np.unique(texts[:, :2], axis=0, return_index=True)  # a pair that stands twice counts once
    _, query = np.unique(texts[rows, 0], return_inverse=True)
    order = np.lexsort((ranks[rows], query))
    query, found = query[order], ranks[rows][order]
    right = np.bincount(query)
    nth = np.arange(len(query)) - np.repeat(np.cumsum(right) - right, right)  # of its query's, the nearest is 0
    best = found[nth == 0]

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=values)

    figures: dict[str, np.ndarray] = {f"accuracy@{k}": best < k for k in _AT}
    figures[f"recall@{_RECALL}"] = sums(found < _RECALL) / right
    ideal = np.cumsum(1 / np.log2(np.arange(_NDCG) + 2))
    figures[f"ndcg@{_NDCG}"] = sums((found < _NDCG) / np.log2(found + 2)) / ideal[np.minimum(right, _NDCG) - 1]
    figures[f"mrr@{_MRR}"] = (best < _MRR) / (best + 1)
    figures[f"map@{_MAP}"] = sums((found < _MAP) * (nth + 1) / (found + 1)) / np.minimum(right, _MAP)
    return {f"{similarity}_{name}": float(values.mean()) for name, values in figures.items()}


def correlations(vectors: np.ndarray, scores: np.ndarray, similarity: str) -> Metrics:
    """Pearson's and Spearman's correlation of similarities with scores; 0 where one of them is constant.

    Args:
        vectors: float32 [rows, 2, dimensions].
        scores: [rows].
    """
    from scipy.stats import pearsonr, spearmanr

    found = similarities(vectors, similarity)
    varies = len(scores) > 1 and bool(np.ptp(found) > 0) and bool(np.ptp(scores) > 0)
    return {
        f"pearson_{similarity}": float(pearsonr(scores, found)[0]) if varies else 0.0,
        f"spearman_{similarity}": float(spearmanr(scores, found)[0]) if varies else 0.0,
    }


def similarities(vectors: np.ndarray, similarity: str) -> np.ndarray:
    """Of each row's first two texts: float32 [rows]."""
    import torch

    first, second = (torch.from_numpy(np.ascontiguousarray(vectors[:, i])) for i in (0, 1))
    found: Any = pairwise(first, second, similarity).numpy()
    return np.asarray(found)
