"""Question answering by generation, as in run_seq2seq_qa.py: question and context in, the first right answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.question import Seq2SeqQuestionAnswering
from raytrain_nlp.tasks.answers import EXAMPLE, check_answers, check_question, example_of, examples_of, texts_of
from raytrain_nlp.tasks.base import IGNORED, Columns, Lengths, Metrics
from raytrain_nlp.tasks.seq2seq import Seq2SeqTask, decode
from raytrain_nlp.tasks.squad_figures import V1, V2, Answered, figures_v1, figures_v2

_SOURCE, _TARGET = "source", "target"


class Seq2SeqQuestionAnsweringTask(Seq2SeqTask):
    """See `tasks.base.Task`. A question without an answer has an empty target."""

    config: Seq2SeqQuestionAnswering
    figures_read: tuple[str, ...] = (EXAMPLE,)

    def __init__(self, config: Seq2SeqQuestionAnswering):
        super().__init__(config)
        self.scores = tuple(name for name in V2 if "best" not in name) if config.version_2_with_negative else V1

    def pair(self, values: dict[str, Any]) -> dict[str, Any]:
        question, context = (values[name].lstrip() for name in self.input_columns())
        source = {_SOURCE: f"question: {question} context: {context}"}
        if self.config.answer_column not in values:  # a row to predict
            return source
        return {**source, _TARGET: next(iter(texts_of(self.config, values)), "")}

    def source_and_target(self) -> tuple[str, str]:
        return _SOURCE, _TARGET

    def required_columns(self) -> list[str]:
        return [*self.input_columns(), self.config.answer_column]

    def input_columns(self) -> list[str]:
        return [self.config.question_column, self.config.context_column]

    def check_row(self, values: dict[str, Any]) -> str | None:
        return check_question(self.config, values) or check_answers(self.config, values, placed=False)

    def check_input(self, values: dict[str, Any]) -> str | None:
        return check_question(self.config, values)

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, lengths: Lengths) -> Columns:
        examples = [example_of(self.config, row, context=False) for row in rows]
        return {**super().encode(rows, tokenizer, lengths), EXAMPLE: examples}

    def join_predictions(self, predictions: Any, truth: Any, columns: Columns) -> tuple[Any, list[Any]]:
        return predictions, examples_of(columns[EXAMPLE])

    def build_metrics(self, labels: list[str], tokenizer: Any) -> Callable[[Any], Metrics]:
        def compute_metrics(prediction: Any) -> Metrics:
            tokens, examples = prediction.predictions
            texts = decode(tokens, tokenizer)
            rows = [Answered(example["answers"], text) for example, text in zip(examples, texts, strict=True)]
            figures = figures_v2(rows, threshold=False) if self.config.version_2_with_negative else figures_v1(rows)
            lengths = (~np.isin(tokens, (tokenizer.pad_token_id, IGNORED))).sum(axis=1)
            return {**figures, "gen_len": float(lengths.mean())}

        return compute_metrics

    def score_rows(self, predictions: Any, truth: Any, labels: list[str], tokenizer: Any) -> Iterator[dict[str, Any]]:
        tokens, examples = predictions
        for row, example in zip(super().score_rows(tokens, truth, labels, tokenizer), examples, strict=True):
            yield {**row, **example}
