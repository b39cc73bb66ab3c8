"""Sentence similarity: vectors of texts, trained on pairs, on pairs with hard negatives, or on pairs with scores.

A row is kept as one list of tokens, its texts one behind the other, and `text_lengths`: its length is all that is read
of it. A batch has the anchors as its inputs and the further texts beside them, each padded to their own longest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.tasks.base import (
    CollateContext,
    Columns,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
    check_text,
    unicode_text,
)
from raytrain_nlp.tasks.similarity.losses import similarity_loss
from raytrain_nlp.tasks.similarity.modules import module_files
from raytrain_nlp.tasks.similarity.retrieval import (
    RETRIEVAL,
    correlations,
    number_texts,
    rank_positives,
    retrieval_figures,
    similarities,
)
from raytrain_nlp.tasks.similarity.vectors import DOCUMENT, TEXTS, apply_vectors
from raytrain_nlp.tasks.truncation import FULL, KEPT, full_lengths

_LENGTHS = "text_lengths"
"""Tokens of each text of a row."""
_TOKENS = ("input_ids", "token_type_ids")


class SentenceSimilarityTask(TaskDefaults):
    """See `tasks.base.Task`."""

    auto_model = "AutoModel"
    auto_mapping = "MODEL_MAPPING_NAMES"
    peft_type = "FEATURE_EXTRACTION"
    rows_weigh = True
    compared_inputs: tuple[str, ...] = ("labels", TEXTS)
    token_inputs: tuple[str, ...] = ("input_ids", f"{DOCUMENT}input_ids")
    prediction_columns: tuple[str, ...] = ("embedding",)

    def __init__(self, config: SentenceSimilarity):
        self.config = config
        self.compares_rows = config.compares_rows
        self.figures_read: tuple[str, ...] = () if config.score_column else ("input_ids", _LENGTHS)
        self.input_choice = tuple(dict.fromkeys((config.text_columns[0], config.document_column)))

    @property
    def only_models(self) -> tuple[str, ...]:
        """Those of texts that are encoders or decoders."""
        from transformers.models.auto import modeling_auto as auto

        texts = {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
        return tuple(sorted(texts - {*auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}))

    def required_columns(self) -> list[str]:
        return [*self.config.text_columns, *([self.config.score_column] if self.config.score_column else [])]

    def check_row(self, values: dict[str, Any]) -> str | None:
        if reason := next((found for name in self.config.text_columns if (found := check_text(values, name))), None):
            return reason
        column = self.config.score_column
        if column is None:
            return None
        if column not in values:
            return f"field '{column}' is missing"
        score = _number(values[column])
        if score is None or not math.isfinite(score):
            return f"field '{column}' is {str(values[column])[:40]!r}, not a number"
        if self.config.objective == "cosine-similarity" and not -1 <= score <= 1:
            return f"field '{column}' is {score:g}, and a cosine is -1 to 1 (task.loss: cosent takes any numbers)"
        return None

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield from (unicode_text(values[column]) for column in self.config.text_columns)

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        parts = [
            self._tokenized([row[column] for row in rows], self._prompt(column), tokenizer, lengths)
            for column in self.config.text_columns
        ]
        sizes = [[len(part["input_ids"][i]) for part in parts] for i in range(len(rows))]
        columns: Columns = {
            name: [[token for part in parts for token in part[name][i]] for i in range(len(rows))]
            for name in _TOKENS
            if name in parts[0]
        }
        columns |= {_LENGTHS: sizes, KEPT: list(map(max, sizes))}
        columns[FULL] = [max(part[FULL][i] for part in parts) for i in range(len(rows))]
        if self.config.score_column:
            columns["label"] = [_number(row[self.config.score_column]) for row in rows]
        return columns

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        """Documents have the shape [rows, texts of a row without the first, longest]; labels are scores, or 0."""
        split = {
            name: [
                np.split(row, np.cumsum(sizes)[:-1])
                for row, sizes in zip(columns[name], columns[_LENGTHS], strict=True)
            ]
            for name in _TOKENS
            if name in columns
        }
        batch = super().collate_inputs({name: [row[0] for row in rows] for name, rows in split.items()}, context)
        further = {name: [part for row in rows for part in row[1:]] for name, rows in split.items()}
        count = len(columns["input_ids"])
        for name, array in super().collate_inputs(further, context).items():
            batch[f"{DOCUMENT}{name}"] = array.reshape(count, -1, array.shape[-1])
        batch["labels"] = np.array(columns.get("label", np.zeros(count)), dtype=np.float32)
        if self.config.mask_duplicates:
            batch[TEXTS] = np.array([list(map(_digest, row)) for row in split["input_ids"]], dtype=np.int64)
        return batch

    def apply_to_model(self, model: Any, tokenizer: Any) -> None:
        apply_vectors(model, self.config)

    def files_beside(self, model_config: Any, max_length: int) -> dict[str, Any]:
        return module_files(self.config, model_config.get_text_config().hidden_size, max_length)

    # Figures

    def join_predictions(self, predictions: Any, truth: Any, columns: Columns) -> Any:
        """Vectors, numbers of texts, and ranks of positives, of all rows."""
        vectors = _vectors(predictions)
        texts = number_texts(columns["input_ids"], columns[_LENGTHS])
        return vectors, texts, rank_positives(vectors, texts, self.config.similarity)

    def joint_loss(self, predictions: Any, truth: Any, batch_rows: int) -> float | None:
        """Of consecutive batches of about `batch_rows` rows, each compared with the others of its batch."""
        import torch

        vectors = torch.from_numpy(_vectors(predictions))
        texts = torch.from_numpy(predictions[1]) if isinstance(predictions, tuple) else None
        scores = torch.from_numpy(np.asarray(truth, dtype=np.float32))
        total = 0.0
        for part in np.array_split(np.arange(len(vectors)), max(round(len(vectors) / batch_rows), 1)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            loss = similarity_loss(self.config, vectors[rows], scores[rows], None if texts is None else texts[rows])
            total += float(loss) * len(part)
        return total / len(vectors)

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            found, similarity = prediction.predictions, self.config.similarity
            if self.config.score_column:
                return correlations(_vectors(found), prediction.label_ids, similarity)
            return retrieval_figures(found[1], found[2], similarity)

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        similarity = self.config.similarity
        if self.config.score_column:
            return (f"spearman_{similarity}", f"pearson_{similarity}")
        return tuple(f"{similarity}_{name}" for name in RETRIEVAL)

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        """The similarity of a row's first two texts, and its score, or the rank of its positive, from 1."""
        found = similarities(_vectors(predictions), self.config.similarity)
        beside = predictions[2] + 1 if isinstance(predictions, tuple) and len(predictions) > 2 else truth
        name, kind = ("score", float) if self.config.score_column else ("rank", int)
        for similarity, value in zip(found.tolist(), beside, strict=True):
            yield {name: kind(value), "similarity": similarity}

    # Prediction

    def input_columns(self) -> list[str]:
        return []  # one of `input_choice`

    def check_input(self, values: dict[str, Any]) -> str | None:
        return check_text(values, self._column(values))

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        texts = [self._prompt(column := self._column(row)) + row[column] for row in rows]
        return self._tokenized(texts, "", tokenizer, lengths)

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": model(**inputs).logits[:, 0].float()}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from ({"embedding": vector.tolist()} for vector in outputs["embedding"])

    def _column(self, values: dict[str, Any]) -> str:
        """The column of a row whose texts are to have vectors."""
        return next((name for name in self.input_choice if name in values), self.input_choice[0])

    def _prompt(self, column: str) -> str:
        first = column == self.config.text_columns[0]
        return self.config.query_prompt if first else self.config.document_prompt

    def _tokenized(self, texts: list[str], prompt: str, tokenizer: Any, lengths: Lengths) -> Columns:
        texts = [prompt + unicode_text(text) for text in texts]
        encoded = tokenizer(texts, truncation=True, max_length=lengths.source, return_attention_mask=False)
        columns: Columns = {name: list(encoded[name]) for name in _TOKENS if name in encoded}
        return {**columns, FULL: full_lengths(tokenizer, encoded, (texts,), lengths.source)}


def _number(value: Any) -> float | None:
    """A score as a number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _digest(tokens: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little", signed=True)


def _vectors(predictions: Any) -> np.ndarray:
    """Of what a model gives, which may be a tuple."""
    return predictions[0] if isinstance(predictions, tuple) else predictions
