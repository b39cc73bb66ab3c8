"""`task:`: what is learned. One class a task, joined in a union on `type`; the code of each is in
`raytrain_nlp/tasks/`.
"""

from __future__ import annotations

from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from raytrain_nlp.config.tasks.choice import MultipleChoice
from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.config.tasks.language import CausalLm, MaskedLm
from raytrain_nlp.config.tasks.question import DEFAULT_LENGTH, QuestionAnswering, Seq2SeqQuestionAnswering
from raytrain_nlp.config.tasks.seq2seq import Summarization, Translation
from raytrain_nlp.config.tasks.tagging import TokenClassification

TaskConfig = Annotated[
    TextClassification
    | TokenClassification
    | MultipleChoice
    | QuestionAnswering
    | CausalLm
    | MaskedLm
    | Summarization
    | Translation
    | Seq2SeqQuestionAnswering,
    Field(discriminator="type"),
]


@runtime_checkable
class Labelled(Protocol):
    """What the section of a task with labels has."""

    label_column: str
    label_names: list[str] | None
    """The classes in the order of their ids, where they are declared."""
    multi_hot: bool | None
    """Do lists of labels hold a 0 or 1 for each class? None: it is to be found out."""


def labelled(section: TaskConfig) -> Labelled:
    """The `task:` section of a task of which a label column is known."""
    assert isinstance(section, Labelled), f"{section.type} has no labels"
    return section


TASK_TYPES = (
    "text-classification",
    "token-classification",
    "multiple-choice",
    "question-answering",
    "causal-lm",
    "masked-lm",
    "summarization",
    "translation",
    "seq2seq-question-answering",
)
DEFAULT_LENGTHS = {"question-answering": DEFAULT_LENGTH, "seq2seq-question-answering": DEFAULT_LENGTH}
"""`data.max_length` of tasks whose scripts have another default than the others."""
