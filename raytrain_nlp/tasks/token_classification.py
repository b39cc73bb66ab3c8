"""Token classification: a tag for each word of a sentence, as in run_ner.py.

A row keeps, beside its tokens, of which word each is (`word_of`) and the tags of all its words; labels are made of them
where rows are padded. So a word that becomes no token, or is cut off, shifts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.tagging import TokenClassification
from raytrain_nlp.errors import Problem
from raytrain_nlp.tasks.base import (
    IGNORED,
    CollateContext,
    Columns,
    Encoded,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
    check_text,
    pad,
    unicode_text,
)
from raytrain_nlp.tasks.problem_types import SingleLabel
from raytrain_nlp.tasks.tag_figures import (
    entities_in,
    tag_metric_names,
    tag_metrics,
    tag_report,
    unlike_scheme,
)
from raytrain_nlp.tasks.truncation import FULL, full_lengths
from raytrain_nlp.tasks.words import split_words

_TEXT = "text"
"""Column of raw text, of rows to predict that are no lists of words."""
_NO_WORD = -1
"""In `word_of`: a special token, or padding."""
_BESIDE = ("word_of", "starts", "ends", "text")


class TokenClassificationTask(TaskDefaults):
    """See `tasks.base.Task`."""

    auto_model = "AutoModelForTokenClassification"
    auto_mapping = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"
    peft_type = "TOKEN_CLS"
    label_column: str | None
    reads_words = True
    prediction_columns: tuple[str, ...] = ("prediction", "entities")
    beside_inputs: tuple[str, ...] = _BESIDE

    def __init__(self, config: TokenClassification):
        self.config = config
        self.label_column = config.label_column
        self.input_choice = tuple(dict.fromkeys((config.text_column, _TEXT)))
        self._tags = SingleLabel(config.label_names)
        self._stored: dict[Any, str] = {}
        """Tags that have been checked, as they are kept."""

    def required_columns(self) -> list[str]:
        return [self.config.text_column, self.config.label_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        column, words = self.config.label_column, values.get(self.config.text_column)
        if reason := self._check_words(values):
            return reason
        if column not in values:
            return f"field '{column}' is missing"
        tags = values[column]
        if not isinstance(tags, list):
            return f"field '{column}' is {'null' if tags is None else type(tags).__name__}, not a list of tags"
        if len(tags) != len(words or ()):
            return f"has {len(words or ())} words in '{self.config.text_column}' and {len(tags)} tags in '{column}'"
        return next(
            (
                f"field '{column}' {reason} (word {place})"
                for place, tag in enumerate(tags, 1)
                if (reason := self._check(tag))
            ),
            None,
        )

    def _check_words(self, values: dict[str, Any]) -> str | None:
        column = self.config.text_column
        if column not in values:
            return f"field '{column}' is missing"
        words = values[column]
        if not isinstance(words, list):
            return f"field '{column}' is {'null' if words is None else type(words).__name__}, not a list of words"
        if not words:
            return f"field '{column}' has no words"
        odd = next(((place, word) for place, word in enumerate(words, 1) if not isinstance(word, str)), None)
        if odd:
            what = "null" if odd[1] is None else type(odd[1]).__name__
            return f"field '{column}' holds {what} where a word should be (word {odd[0]})"
        return None

    def _check(self, tag: Any) -> str | None:
        """Why a value is no tag, or None."""
        if isinstance(tag, (str, int)) and tag in self._stored:
            return None
        if tag is not None and not isinstance(tag, (str, int, float)):
            return f"holds {type(tag).__name__} where a tag should be"
        if reason := self._tags.check(tag):
            return reason.replace("is ", "holds a tag that is ", 1) if reason.startswith("is ") else reason
        if isinstance(tag, (str, int)):
            self._stored[tag] = self._tags.stored(tag)
        return None

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield " ".join(map(unicode_text, values[self.config.text_column]))

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return None if tokenizer.is_fast else "does not say which word a token is of: it is a slow one"

    def check_labels(self, labels: list[str]) -> Problem | None:
        scheme, column = self.config.tag_scheme, self.config.label_column
        if len(labels) < 2:
            return Problem("data.train", f"all tags of column '{column}' are equal ({labels[0]!r})", "Two are needed.")
        if scheme and (odd := unlike_scheme(labels, scheme)):
            return Problem("task.tag_scheme", f"the tag {odd!r} is none of {scheme}", "Correct it, or leave it out.")
        return None

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        words = [[unicode_text(word) for word in row[self.config.text_column]] for row in rows]
        tags = [
            [
                self._stored[tag] if tag in self._stored else self._tags.stored(tag)
                for tag in row[self.config.label_column]
            ]
            for row in rows
        ]
        return {**_tokenized(words, tokenizer, lengths), "label": tags}

    def encoded(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        columns = self.encode(rows, tokenizer, lengths)
        empty = {place for place, words in enumerate(columns["word_of"]) if max(words, default=_NO_WORD) == _NO_WORD}
        kept = [place for place in range(len(rows)) if place not in empty]
        found = {name: [values[place] for place in kept] for name, values in columns.items()}
        return Encoded(found, kept, unlearned=dict.fromkeys(empty, "no word of it becomes a token"))

    def classes(self, columns: Columns) -> Iterable[str]:
        return (tag for row in columns["label"] for tag in row)

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        ids, inside = context.label_ids, _inside(context.labels) if self.config.label_all_tokens else None
        labels = [_labels_of(words, tags, ids, inside) for words, tags in zip(columns["word_of"], columns["label"])]
        return {**super().collate_inputs(columns, context), "labels": pad(labels, IGNORED, context.padding_side)}

    def model_kwargs(self, labels: list[str]) -> dict[str, Any]:
        named = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        return {"num_labels": len(labels), **named}

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """Of each token the likeliest tag and its probability: int64 and float32 [rows, tokens]."""
        return _likeliest(logits[0] if isinstance(logits, tuple) else logits)

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            report = self.build_report(prediction.predictions, prediction.label_ids, labels)["classes"]
            return tag_metrics(report, labels, self.config.return_entity_level_metrics)

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return tag_metric_names(labels or self.config.label_names, self.config.return_entity_level_metrics)

    def build_report(self, predictions: Any, truth: Any, labels: list[str]) -> dict[str, Any]:
        rows = list(self.score_rows(predictions, truth, labels, None))
        wanted, found = ([row[name] for row in rows] for name in ("label", "prediction"))
        return {"classes": tag_report(wanted, found, labels, self.config.tag_scheme)}

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        """Of the words that are scored."""
        best, scores = predictions[:2]
        for wanted, found, score in zip(truth, best, scores, strict=True):
            scored = wanted != IGNORED
            yield {
                "label": [labels[tag] for tag in wanted[scored]],
                "prediction": [labels[tag] for tag in found[scored]],
                "scores": score[scored].tolist(),
            }

    # Prediction

    def input_columns(self) -> list[str]:
        return []  # one of `input_choice`

    def check_input(self, values: dict[str, Any]) -> str | None:
        if isinstance(values.get(self.config.text_column), list):
            return self._check_words(values)
        column = next((name for name in self.input_choice if isinstance(values.get(name), str)), None)
        if column is None:
            return f"has neither words in '{self.config.text_column}' nor text in '{_TEXT}'"
        return check_text(values, column)

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        texts, spans = zip(*map(self._words_of, rows), strict=True)
        words = [[text[start:end] for start, end in places] for text, places in zip(texts, spans, strict=True)]
        return {
            **_tokenized(words, tokenizer, lengths),
            "starts": [[start for start, _ in places] for places in spans],
            "ends": [[end for _, end in places] for places in spans],
            "text": [list(map(ord, text)) for text in texts],
        }

    def _words_of(self, row: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a row, and the places of its words; of words the text with a space between them."""
        words = row.get(self.config.text_column)
        if not isinstance(words, list):
            text = unicode_text(next(row[name] for name in self.input_choice if isinstance(row.get(name), str)))
            return text, split_words(text)
        words = [unicode_text(word) for word in words]
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        return " ".join(words), [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        sides = {name: context.padding_side if name == "word_of" else "right" for name in _BESIDE}
        beside = {name: pad(columns[name], _NO_WORD, side) for name, side in sides.items()}
        return {**super().collate_inputs(columns, context), **beside}

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        best, scores = _likeliest(model(**inputs).logits)
        return {"best": best, "scores": scores}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        """Of each row the tag of each word (None of one that has no token, or was cut off) and the entities."""
        for values in zip(*(outputs[name] for name in ("best", "scores", *_BESIDE)), strict=True):
            best, scores, word_of, starts, ends, text = values
            count = int((starts != _NO_WORD).sum())
            tags: list[str | None] = [None] * count
            shares = [0.0] * count
            for place in np.flatnonzero(_is_first(word_of)):
                tags[word_of[place]], shares[word_of[place]] = labels[best[place]], float(scores[place])
            written = "".join(map(chr, text[text != _NO_WORD]))
            yield {"prediction": tags, "entities": _spans(tags, shares, labels, starts, ends, written)}


def _spans(
    tags: list[str | None], shares: list[float], labels: list[str], starts: np.ndarray, ends: np.ndarray, text: str
) -> list[dict[str, Any]]:
    """The entities of a sentence, by the names that transformers' pipeline gives."""
    found = []
    for kind, first, last in entities_in(tags, labels):
        start, end = int(starts[first]), int(ends[last])
        score = float(np.mean(shares[first : last + 1]))
        found.append({"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end})
    return found


def _tokenized(words: list[list[str]], tokenizer: Any, lengths: Lengths) -> Columns:
    """Token columns of sentences, of which word each token is, and how many tokens there would be uncut."""
    encoded = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=lengths.source, return_attention_mask=False
    )
    columns: Columns = {key: list(encoded[key]) for key in encoded if key in ("input_ids", "token_type_ids")}
    columns["word_of"] = [
        [_NO_WORD if word is None else word for word in encoded.word_ids(i)] for i in range(len(words))
    ]
    columns[FULL] = full_lengths(tokenizer, encoded, (words,), lengths.source, is_split_into_words=True)
    return columns


def _is_first(word_of: np.ndarray) -> np.ndarray:
    """Which tokens are the first of a word: bool, of the same shape [tokens]."""
    before = np.concatenate([[_NO_WORD], word_of[:-1]])
    return (word_of != _NO_WORD) & (word_of != before)


def _labels_of(word_of: Any, tags: list[str], ids: dict[str, int], inside: np.ndarray | None) -> np.ndarray:
    """The label of each token. `inside`: of each class the one of a word's further tokens; None: they are ignored."""
    words, known = np.asarray(word_of), np.array([ids[tag] for tag in tags], dtype=np.int32)
    first = _is_first(words)
    further = IGNORED if inside is None else np.where(words == _NO_WORD, IGNORED, inside[known[words]])
    return np.where(first, known[words], further).astype(np.int32)


def _inside(labels: list[str]) -> np.ndarray:
    """Of each class that begins an entity the one that continues it, where there is one; of others themselves."""
    ids = {label: place for place, label in enumerate(labels)}
    return np.array([ids.get(f"I-{label[2:]}", i) if label.startswith("B-") else i for i, label in enumerate(labels)])


def _likeliest(logits: Any) -> tuple[Any, Any]:
    scores, best = logits.float().softmax(-1).max(-1)
    return best, scores
