"""`task:` of question answering: a stretch of a context, or an answer that is generated. Names follow run_qa.py and
run_seq2seq_qa.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section
from raytrain_nlp.config.tasks.seq2seq import Seq2Seq

DEFAULT_LENGTH = 384
"""Of `data.max_length`, as `max_seq_length` of the scripts."""


class Answered(Section):
    """What rows of questions have, and how answers are scored."""

    question_column: str = "question"
    """Column of the questions."""
    context_column: str = "context"
    """Column of the texts that the answers are in."""
    answer_column: str = "answers"
    """Column of the right answers, {text: [...], answer_start: [...]}; of these the first is learned."""
    version_2_with_negative: bool = False
    """Some questions have no answer (SQuAD 2.0)."""


class QuestionAnswering(Answered):
    """Where in a context the answer to a question stands."""

    type: Literal["question-answering"]
    doc_stride: int = Field(128, ge=0)
    """Tokens that two windows of a context share, where it is longer than data.max_length leaves room for."""
    max_answer_length: int = Field(30, ge=1)
    """Most tokens of an answer."""
    n_best_size: int = Field(20, ge=1)
    """Likeliest first tokens, and last ones, that are combined; and answers among which the best one's probability is
    shared.
    """
    null_score_diff_threshold: float = 0.0
    """With version_2_with_negative: an answer is given where the score of none exceeds its own by no more than this."""
    write_n_best: int = Field(0, ge=0)
    """Answers that `predict` writes for each question besides the best one, as `n_best`."""

    @model_validator(mode="after")
    def _agree(self) -> QuestionAnswering:
        if self.write_n_best > self.n_best_size:
            raise ValueError(
                f"write_n_best: is more than n_best_size ({self.write_n_best} and {self.n_best_size}) || Correct one."
            )
        if self.null_score_diff_threshold and not self.version_2_with_negative:
            raise ValueError(
                "null_score_diff_threshold: every question has an answer without version_2_with_negative || Set it, or "
                "remove the threshold."
            )
        return self


class Seq2SeqQuestionAnswering(Answered, Seq2Seq):
    """The answer to a question about a context, as a text that is generated."""

    type: Literal["seq2seq-question-answering"]
    max_target_length: int = Field(30, ge=2)
    """Tokens an answer is truncated to (`max_answer_length` of run_seq2seq_qa.py)."""
