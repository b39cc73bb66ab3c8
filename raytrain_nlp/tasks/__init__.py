"""The tasks. A new one is a file here, a line in `_TASKS`, a class in `config/tasks/__init__.py`, a job file and a
test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raytrain_nlp.config.tasks import TaskConfig
from raytrain_nlp.tasks.base import Task
from raytrain_nlp.tasks.language.causal_lm import CausalLmTask
from raytrain_nlp.tasks.language.masked_lm import MaskedLmTask
from raytrain_nlp.tasks.language.permutation_lm import PermutationLmTask
from raytrain_nlp.tasks.multiple_choice import MultipleChoiceTask
from raytrain_nlp.tasks.preference.preference_task import PreferenceTask
from raytrain_nlp.tasks.preference.reward_modeling import RewardModelingTask
from raytrain_nlp.tasks.question_answering import QuestionAnsweringTask
from raytrain_nlp.tasks.seq2seq import SummarizationTask, TranslationTask
from raytrain_nlp.tasks.seq2seq_question_answering import Seq2SeqQuestionAnsweringTask
from raytrain_nlp.tasks.similarity.sentence_similarity import SentenceSimilarityTask
from raytrain_nlp.tasks.text_classification import TextClassificationTask
from raytrain_nlp.tasks.token_classification import TokenClassificationTask

_TASKS: dict[str, Callable[[Any], Task]] = {
    "text-classification": TextClassificationTask,
    "token-classification": TokenClassificationTask,
    "multiple-choice": MultipleChoiceTask,
    "question-answering": QuestionAnsweringTask,
    "sentence-similarity": SentenceSimilarityTask,
    "causal-lm": CausalLmTask,
    "masked-lm": MaskedLmTask,
    "permutation-lm": PermutationLmTask,
    "summarization": SummarizationTask,
    "translation": TranslationTask,
    "seq2seq-question-answering": Seq2SeqQuestionAnsweringTask,
    "preference": PreferenceTask,
    "reward-modeling": RewardModelingTask,
}


def build_task(config: TaskConfig) -> Task:
    """The task of a job's `task:` section."""
    return _TASKS[config.type](config)
