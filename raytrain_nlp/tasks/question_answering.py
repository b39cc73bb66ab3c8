"""Extractive question answering, as in run_qa.py: which stretch of a context answers a question.

A context that is longer than a window becomes several features, which share `doc_stride` tokens: rows of tokens, each
trained on for itself. Predictions and figures are of questions, each of all its features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.question import QuestionAnswering
from raytrain_nlp.errors import Problem
from raytrain_nlp.tasks.answer_spans import OUTSIDE, PADDING, Window, answer, best_spans
from raytrain_nlp.tasks.answers import (
    EXAMPLE,
    check_answers,
    check_question,
    example_of,
    examples_of,
    first_answer,
)
from raytrain_nlp.tasks.base import (
    CollateContext,
    Columns,
    Encoded,
    Lengths,
    Metrics,
    Place,
    TaskDefaults,
    pad,
    unicode_text,
)
from raytrain_nlp.tasks.squad_figures import V1, V2, Answered, figures_v1, figures_v2
from raytrain_nlp.tasks.truncation import FULL

_POSITIONS = ("start_positions", "end_positions")
_BEGINS, _ENDS, _NULL = "token_begins", "token_ends", "null_token"
"""Columns: where each token of the context stands in it, and which token stands for no answer, as
`answer_spans.Window` has them.
"""


class QuestionAnsweringTask(TaskDefaults):
    """See `tasks.base.Task`. Labels are two positions of tokens; a feature without the answer, or of a question without
    one, is labelled with its CLS token.
    """

    auto_model = "AutoModelForQuestionAnswering"
    auto_mapping = "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"
    peft_type = "QUESTION_ANS"
    beside_inputs: tuple[str, ...] = (_BEGINS, _ENDS, _NULL)
    rows_weigh = True
    joins_rows = True
    figures_read: tuple[str, ...] = (*_POSITIONS, _BEGINS, _ENDS, _NULL, EXAMPLE)

    def __init__(self, config: QuestionAnswering):
        self.config = config
        null = ("null_score_diff",) if config.version_2_with_negative else ()
        n_best = ("n_best",) if config.write_n_best else ()
        self.prediction_columns: tuple[str, ...] = ("prediction", "start", "end", "score", *null, *n_best)

    def required_columns(self) -> list[str]:
        return [*self.input_columns(), self.config.answer_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        return check_question(self.config, values) or check_answers(self.config, values, placed=True)

    def texts(self, values: dict[str, Any]) -> Iterator[str]:
        yield from (unicode_text(values[column]) for column in self.input_columns())

    def check_tokenizer(self, tokenizer: Any) -> str | None:
        return None if tokenizer.is_fast else "has no fast version, which alone says where in a text its tokens stand"

    def check_lengths(self, lengths: Lengths, tokenizer: Any) -> Problem | None:
        if self._longest_question(lengths, tokenizer) >= 1:
            return None
        what = f"leaves a window no token to go on ({self.config.doc_stride}; a row may have {lengths.source})"
        return Problem("task.doc_stride", what, "Lower it, or raise data.max_length.")

    def spread_note(self, count: int, data_rows: int, rows: int) -> str:
        return f"{count:,} of {data_rows:,} contexts are longer than a window: {rows:,} features in all."

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self.encoded(rows, tokenizer, lengths).columns

    def encoded(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        found = self.encode_input_rows(rows, tokenizer, lengths)
        columns, answers = found.columns, [first_answer(self.config, row) for row in rows]
        places = [
            _positions(np.array(begins), np.array(ends), null, answers[row])
            for begins, ends, null, row in zip(*(columns[n] for n in (_BEGINS, _ENDS, _NULL)), found.rows, strict=True)
        ]
        columns |= {name: [place[i] for place in places] for i, name in enumerate(_POSITIONS)}
        firsts = [i == 0 or found.rows[i - 1] != row for i, row in enumerate(found.rows)]
        columns[EXAMPLE] = [
            example_of(self.config, rows[row], context=True) if first else None
            for row, first in zip(found.rows, firsts, strict=True)
        ]
        return found

    def collate(self, columns: Columns, context: CollateContext, place: Place) -> dict[str, np.ndarray]:
        """All parts of a global batch are equally wide: the loss is a softmax over the tokens of a row, padding among
        them, and must not depend on the number of workers.
        """
        batch = super().collate_inputs(columns, context)
        gap = max(place.longest - batch["input_ids"].shape[1], 0)
        fill = {"input_ids": context.pad_token_id, "token_type_ids": context.pad_token_type_id}
        left = context.padding_side == "left"
        sides = ((0, 0), (gap, 0) if left else (0, gap))
        batch = {name: np.pad(array, sides, constant_values=fill.get(name, 0)) for name, array in batch.items()}
        return batch | {name: _moved(columns, name, context) + (gap if left else 0) for name in _POSITIONS}

    # Figures

    def reduce_logits(self, logits: Any, labels: Any) -> Any:
        """Scores of first and last tokens; encoder states and the like are left out."""
        return logits[:2]

    def join_predictions(self, predictions: Any, truth: Any, columns: Columns) -> list[dict[str, Any]]:
        """A dict for each question: its prediction, `answers`, and its `id` where it has one."""
        questions: list[tuple[dict[str, Any], list[Window]]] = []
        for row, example in enumerate(examples_of(columns[EXAMPLE])):
            if example is not None:
                questions.append((example, []))
            # padding before a row has moved its labels, too
            first = int(truth[0][row]) - int(columns[_POSITIONS[0]][row])
            begins, ends, null = (columns[name][row] for name in (_BEGINS, _ENDS, _NULL))
            starts, stops = (logits[row, first : first + len(begins)] for logits in predictions)
            questions[-1][1].append(Window(starts, stops, begins, ends, null))
        contexts = [example.pop("context") for example, _ in questions]
        return [
            {**example, **self._answer(windows, context)}
            for (example, windows), context in zip(questions, contexts, strict=True)
        ]

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            if not self.config.version_2_with_negative:
                return figures_v1([Answered(row["answers"], row["prediction"]) for row in prediction.predictions])
            return figures_v2(
                [
                    Answered(row["answers"], row["prediction"], row["best_non_null"], row["null_score_diff"])
                    for row in prediction.predictions
                ]
            )

        return compute_metrics

    def metric_names(self, labels: list[str] | None) -> tuple[str, ...]:
        return V2 if self.config.version_2_with_negative else V1

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        yield from predictions

    # Prediction

    def input_columns(self) -> list[str]:
        return [self.config.question_column, self.config.context_column]

    def check_input(self, values: dict[str, Any]) -> str | None:
        return check_question(self.config, values)

    def encode_inputs(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        return self.encode_input_rows(rows, tokenizer, lengths).columns

    def encode_input_rows(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Encoded:
        """The windows of all contexts. A tokenizer that pads on the left gets the context first, as in run_qa.py."""
        questions = [unicode_text(row[self.config.question_column]).lstrip() for row in rows]
        contexts = [unicode_text(row[self.config.context_column]) for row in rows]
        cut = self._cut_questions(questions, contexts, tokenizer, lengths)
        left = tokenizer.padding_side == "left"
        encoded = tokenizer(
            *((contexts, questions) if left else (questions, contexts)),
            truncation="only_first" if left else "only_second",
            max_length=lengths.source,
            stride=self.config.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ids, places = encoded["input_ids"], encoded["overflow_to_sample_mapping"]
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        columns |= {_BEGINS: [], _ENDS: [], _NULL: [_null_place(row, tokenizer) for row in ids]}
        for i, offsets in enumerate(encoded["offset_mapping"]):
            inside = np.array([sequence == int(not left) for sequence in encoded.sequence_ids(i)])
            if not inside.any():
                raise ValueError("its context has no tokens")
            for name, part in zip((_BEGINS, _ENDS), np.array(offsets).T, strict=True):
                columns[name].append(np.where(inside, part, OUTSIDE).tolist())
        columns[FULL] = [cut.pop(row, len(row_ids)) for row, row_ids in zip(places, ids, strict=True)]
        return Encoded(columns, list(places))

    def read_beside(self, values: dict[str, Any]) -> str | None:
        return values[self.config.context_column]

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        batch = super().collate_inputs(columns, context)
        batch |= {name: pad(columns[name], PADDING, context.padding_side) for name in (_BEGINS, _ENDS)}
        return batch | {_NULL: _moved(columns, _NULL, context)[:, None]}

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        found = model(**inputs)
        return {"start_logits": found.start_logits.float(), "end_logits": found.end_logits.float()}

    def predict_row(self, features: list[dict[str, np.ndarray]], beside: str) -> dict[str, Any]:
        windows = [
            Window(row["start_logits"], row["end_logits"], row[_BEGINS], row[_ENDS], int(row[_NULL][0])).trimmed()
            for row in features
        ]
        windows.sort(key=lambda window: window.begins[window.begins >= 0].min())
        found = self._answer(windows, beside)
        return {name: found[name] for name in self.prediction_columns}

    def _answer(self, windows: list[Window], context: str) -> dict[str, Any]:
        config = self.config
        spans = best_spans(windows, config.n_best_size, config.max_answer_length, config.version_2_with_negative)
        threshold = config.null_score_diff_threshold if config.version_2_with_negative else None
        return answer(spans, context, threshold, config.write_n_best)

    def _longest_question(self, lengths: Lengths, tokenizer: Any) -> int:
        """Tokens that a question may have, so that each window goes on by one token at least."""
        assert lengths.source is not None, "rows are not packed"
        return lengths.source - tokenizer.num_special_tokens_to_add(pair=True) - self.config.doc_stride - 1

    def _cut_questions(
        self, questions: list[str], contexts: list[str], tokenizer: Any, lengths: Lengths
    ) -> dict[int, int]:
        """Cut questions that leave the context no room, where it needs some; returns tokens of such rows before."""
        most, cut = self._longest_question(lengths, tokenizer), {}
        for place, question in enumerate(questions):
            if len(question.encode()) <= most:  # a token is a byte at least
                continue
            offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            whole = tokenizer(question, contexts[place], truncation=False, verbose=False)["input_ids"]
            if len(offsets) > most and len(whole) > (lengths.source or len(whole)):
                questions[place], cut[place] = question[: offsets[most - 1][1]], len(whole)
        return cut


def _null_place(ids: list[int], tokenizer: Any) -> int:
    """Where the token stands that is labelled where there is no answer: CLS, else the first of the sequence."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in ids:
            return ids.index(token)
    return 0


def _moved(columns: Columns, name: str, context: CollateContext) -> np.ndarray:
    """A column of places in rows, behind the padding before them: int64 [rows]."""
    sizes = np.array([len(row) for row in columns["input_ids"]], dtype=np.int64)
    return np.array(columns[name], dtype=np.int64) + (sizes.max() - sizes if context.padding_side == "left" else 0)


def _positions(begins: np.ndarray, ends: np.ndarray, null: int, span: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of the answer that stands at characters `span`; `null` where a part of it is outside of the
    window.
    """
    inside = np.flatnonzero(begins >= 0)
    if span is None or begins[inside[0]] > span[0] or ends[inside[-1]] < span[1]:
        return null, null
    start = np.searchsorted(begins[inside], span[0], side="right") - 1
    end = np.searchsorted(ends[inside], span[1], side="left")
    return int(inside[start]), int(inside[end])
