"""`task:` of question answering: find the answer in a context, or generate it. Keys are named as in run_qa.py and
run_seq2seq_qa.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section
from raytrain_nlp.config.tasks.seq2seq import Seq2Seq

DEFAULT_LENGTH = 384
"""Default of `data.max_length` for these tasks, as of `max_seq_length` in the scripts."""


class Answered(Section):
    """The columns of questions with answers, and how answers are scored."""

    question_column: str = "question"
    """Column with the questions."""
    context_column: str = "context"
    """Column with the texts that contain the answers."""
    answer_column: str = "answers"
    """Column with the right answers of each question, {text: [...], answer_start: [...]}. The model is trained on the
    first."""
    version_2_with_negative: bool = False
    """Some questions have no answer (SQuAD 2.0)."""


class QuestionAnswering(Answered):
    """Find the part of a context that answers a question."""

    type: Literal["question-answering"]
    doc_stride: int = Field(128, ge=0)
    """A context too long for data.max_length is cut into several windows; neighbouring ones share this many tokens."""
    max_answer_length: int = Field(30, ge=1)
    """Tokens that an answer may have at most."""
    n_best_size: int = Field(20, ge=1)
    """Number of the likeliest first tokens and of the likeliest last tokens that are combined to answers, and of the
    best answers among which probabilities are computed."""
    null_score_diff_threshold: float = 0.0
    """With version_2_with_negative: a question is left unanswered where the score of "no answer" exceeds that of the
    best answer by more than this."""
    write_n_best: int = Field(0, ge=0)
    """Number of further answers that `predict` writes for each question, besides the best one, as `n_best`."""

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
    """Generate the answer to a question about a context."""

    type: Literal["seq2seq-question-answering"]
    max_target_length: int = Field(30, ge=2)
    """Tokens that an answer is truncated to (`max_answer_length` of run_seq2seq_qa.py)."""
