"""A model whose forward gives a vector for each text, and with labels the loss of its rows.

The class of a loaded model is replaced by one derived from it, so that weights keep their names: what is trained,
sharded, saved and loaded is the plain model. Anchors and documents go through it one after the other, each padded to
its own longest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.tasks.similarity.losses import similarity_loss

DOCUMENT = "document_"
"""Before the names of inputs that are of a row's further texts: [rows, further texts, longest]."""
TEXTS = "text_ids"
"""Numbers of the texts of a row, equal for equal texts: int64 [rows, texts]."""


def apply_vectors(model: Any, config: SentenceSimilarity) -> None:
    """Let the forward of `model`, an `AutoModel` of transformers, return vectors and a loss."""
    plain = type(model)
    model.__class__ = type(
        plain.__name__, (_WithVectors, plain), {"__module__": plain.__module__, "similarity": config, "plain": plain}
    )


class _WithVectors:
    """Stands before the class of the model."""

    similarity: SentenceSimilarity
    plain: Callable[..., Any]

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        labels: Any = None,
        document_input_ids: Any = None,
        document_attention_mask: Any = None,
        document_token_type_ids: Any = None,
        text_ids: Any = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`logits` are vectors, float32 [rows, texts, dimensions]. With `labels`, the scores of rows, also `loss`: of
        the global batch in a training's step, else of these rows.
        """
        import torch
        from transformers.modeling_outputs import SequenceClassifierOutput

        others = {name: value for name, value in kwargs.items() if value is not None}
        made = [self._vectors(input_ids, attention_mask, token_type_ids, others)[:, None]]
        if document_input_ids is not None:
            rows, count, _ = document_input_ids.shape
            ids, mask, types = (
                None if part is None else part.flatten(0, 1)
                for part in (document_input_ids, document_attention_mask, document_token_type_ids)
            )
            made.append(self._vectors(ids, mask, types, others).reshape(rows, count, -1))
        vectors = torch.cat(made, dim=1)
        loss = None if labels is None or document_input_ids is None else self._loss(vectors, labels, text_ids)
        return SequenceClassifierOutput(loss=loss, logits=vectors)

    def _vectors(self, input_ids: Any, attention_mask: Any, token_type_ids: Any, others: dict[str, Any]) -> Any:
        """Of texts [texts, longest]: float32 [texts, dimensions]."""
        import torch

        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {name: value for name, value in given.items() if value is not None} | others
        hidden = super().forward(input_ids=input_ids, **given)[0].float()  # type: ignore[misc]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        vectors = _POOLINGS[self.similarity.pooling](hidden, mask)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.similarity.normalize else vectors

    def _loss(self, vectors: Any, labels: Any, text_ids: Any) -> Any:
        from raytrain_nlp.distributed.row_pool import POOL  # torch, which the feed is not to load

        config, own = self.similarity, {"vectors": vectors, "labels": labels.float()}
        own |= {} if text_ids is None else {TEXTS: text_ids}
        if not config.compares_rows:
            return similarity_loss(config, vectors, own["labels"], text_ids)
        known = POOL.join(own)
        loss = similarity_loss(config, known["vectors"], known["labels"], known.get(TEXTS))
        return POOL.weigh(loss, vectors)


def _mean(hidden: Any, mask: Any) -> Any:
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _first(hidden: Any, mask: Any) -> Any:
    return _taken(hidden, mask.int().argmax(1))


def _last(hidden: Any, mask: Any) -> Any:
    return _taken(hidden, mask.shape[1] - 1 - mask.int().flip(1).argmax(1))


def _largest(hidden: Any, mask: Any) -> Any:
    return hidden.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def _taken(hidden: Any, places: Any) -> Any:
    return hidden.gather(1, places[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]


_POOLINGS: dict[str, Callable[[Any, Any], Any]] = {"mean": _mean, "cls": _first, "lasttoken": _last, "max": _largest}
"""From hidden states [texts, longest, dimensions] and a mask [texts, longest] to vectors [texts, dimensions]."""
