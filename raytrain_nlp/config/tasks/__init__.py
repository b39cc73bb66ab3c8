"""`task:`: one class for each task, joined to a union by the key `type`. The code of a task is in
`raytrain_nlp/tasks/`.
"""

from __future__ import annotations

from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from raytrain_nlp.config.tasks.choice import MultipleChoice
from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.config.tasks.language import CausalLm, MaskedLm, PermutationLm
from raytrain_nlp.config.tasks.preference import Preference, RewardModeling
from raytrain_nlp.config.tasks.question import DEFAULT_LENGTH, QuestionAnswering, Seq2SeqQuestionAnswering
from raytrain_nlp.config.tasks.seq2seq import Summarization, Translation
from raytrain_nlp.config.tasks.similarity import SentenceSimilarity
from raytrain_nlp.config.tasks.tagging import TokenClassification

TaskConfig = Annotated[
    TextClassification
    | TokenClassification
    | MultipleChoice
    | QuestionAnswering
    | SentenceSimilarity
    | CausalLm
    | MaskedLm
    | PermutationLm
    | Summarization
    | Translation
    | Seq2SeqQuestionAnswering
    | Preference
    | RewardModeling,
    Field(discriminator="type"),
]


@runtime_checkable
class Labelled(Protocol):
    """The attributes that the `task:` section of a task with labels has."""

    label_column: str
    label_names: list[str] | None
    """The declared classes in the order of their ids; None where the job declares none."""
    multi_hot: bool | None
    """Does a list of labels hold a 0 or 1 for each class? None: the first rows tell."""


def labelled(section: TaskConfig) -> Labelled:
    """The section as `Labelled`; only for tasks that have a label column."""
    assert isinstance(section, Labelled), f"{section.type} has no labels"
    return section


TASK_TYPES = (
    "text-classification",
    "token-classification",
    "multiple-choice",
    "question-answering",
    "sentence-similarity",
    "causal-lm",
    "masked-lm",
    "permutation-lm",
    "summarization",
    "translation",
    "seq2seq-question-answering",
    "preference",
    "reward-modeling",
)
DEFAULT_LENGTHS = {"question-answering": DEFAULT_LENGTH, "seq2seq-question-answering": DEFAULT_LENGTH}
"""Default of `data.max_length` for tasks whose example scripts have a default of their own."""
