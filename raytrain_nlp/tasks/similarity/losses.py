"""The losses of sentence-transformers that compare vectors of texts, over all rows of a global batch at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain_nlp.config.tasks.similarity import SentenceSimilarity

if TYPE_CHECKING:
    import torch


def similarity_loss(config: SentenceSimilarity, vectors: Any, scores: Any, texts: Any) -> torch.Tensor:
    """The loss of some rows, shape [].

    Args:
        vectors: float32 [rows, texts, dimensions]: of anchor, positive and negatives; of two texts with a score.
        scores: float32 [rows]; read where rows have scores.
        texts: int64 [rows, texts]: equal numbers for equal texts; read where equal texts are masked.
    """
    if config.objective == "multiple-negatives-ranking":
        return _ranking(config, vectors, texts)
    first, second = vectors[:, 0], vectors[:, 1]
    if config.objective == "cosine-similarity":
        return (pairwise(first, second, "cosine") - scores).square().mean()
    return _cosent(pairwise(first, second, config.similarity) * config.scale, scores)


def pairwise(first: Any, second: Any, similarity: str) -> torch.Tensor:
    """The similarity of each row of `first` with the same row of `second`: [rows]."""
    first, second = (_unit(vectors) if similarity == "cosine" else vectors for vectors in (first, second))
    return (first * second).sum(-1)


def all_pairs(first: Any, second: Any, similarity: str) -> torch.Tensor:
    """The similarity of each row of `first` with each of `second`: [rows of first, rows of second]."""
    first, second = (_unit(vectors) if similarity == "cosine" else vectors for vectors in (first, second))
    return first @ second.T


def _unit(vectors: Any) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(vectors, dim=-1)


def _ranking(config: SentenceSimilarity, vectors: Any, texts: Any) -> torch.Tensor:
    """Multiple negatives ranking (Henderson et al. 2017, section 4.4; van den Oord et al. 2018): the cross entropy of
    each anchor's own positive among the positives and negatives of all rows; with `symmetric` the mean of this and of
    that of each positive's own anchor among all anchors.
    """
    rows = len(vectors)
    anchors, documents = vectors[:, 0], vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives come first
    scores = all_pairs(anchors, documents, config.similarity) * config.scale
    own, backward = scores[:, :rows].diagonal(), scores[:, :rows].T
    if config.mask_duplicates:
        right = _also_right(texts)
        scores = scores.masked_fill(right, float("-inf"))
        backward = backward.masked_fill(right[:, :rows], float("-inf"))
    total = scores.logsumexp(1)
    if config.symmetric:
        total = (total + backward.logsumexp(1)) / 2
    return (total - own).mean()


def _also_right(texts: Any) -> torch.Tensor:
    """Which documents are right for an anchor besides its row's own positive: those equal to that, and the positives of
    equal anchors. True and false [rows, all documents]; of the positives it is symmetric.
    """
    anchors, positives, documents = texts[:, 0], texts[:, 1], texts[:, 1:].T.flatten()
    right = positives[:, None] == documents[None, :]
    right[:, : len(texts)] |= anchors[:, None] == anchors[None, :]
    right[:, : len(texts)].fill_diagonal_(False)
    return right


def _cosent(scores: Any, right: Any) -> torch.Tensor:
    """CoSENT (Huang et al. 2024): log(1 + sum of exp(s_j - s_i)) over all pairs of rows of which i is to be more
    similar than j.

    Args:
        scores: scaled similarities [rows].
        right: what they should be ordered like [rows].
    """
    import torch

    apart = torch.where(right[:, None] > right[None, :], scores[None, :] - scores[:, None], float("-inf"))
    return torch.cat([scores.new_zeros(1), apart.flatten()]).logsumexp(0)
