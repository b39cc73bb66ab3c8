"""`task:`: what is learned. One class a task, joined in a union on `type`; the code of each is in `raytrain_nlp/tasks/`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raytrain_nlp.config.tasks.classification import TextClassification
from raytrain_nlp.config.tasks.language import CausalLm, MaskedLm
from raytrain_nlp.config.tasks.seq2seq import Summarization, Translation

TaskConfig = Annotated[TextClassification | CausalLm | MaskedLm | Summarization | Translation, Field(discriminator="type")]
TASK_TYPES = ("text-classification", "causal-lm", "masked-lm", "summarization", "translation")
