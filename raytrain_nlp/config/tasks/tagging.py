"""`task:` of token classification: a tag for each word. Names follow run_ner.py."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from raytrain_nlp.config.base import Section
from raytrain_nlp.config.tasks.label_names import NUMBERS_TOO, LabelNames


class TokenClassification(Section):
    """A tag for each word of a sentence: names, parts of speech."""

    type: Literal["token-classification"]
    text_column: str = "tokens"
    """Column with the words of a sentence, as a list."""
    label_column: str = "ner_tags"
    """Column with a tag for each word: names, or numbers of `label_names`."""
    label_names: LabelNames | None = Field(None, json_schema_extra=NUMBERS_TOO)
    """All tags in the order of their ids; default: those that a `datasets` file declares, else the sorted tags of the
    training split, in the order of the head where the model has one with these names."""
    label_all_tokens: bool = False
    """Learn and score each token of a word, those behind the first with `I-` for `B-`; default: the first alone."""
    return_entity_level_metrics: bool = False
    """Figures of each type of entity, too, as `PER_f1`, and those of all as `overall_f1`."""
    tag_scheme: Literal["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"] | None = None
    """How tags make entities, strictly; default: as conlleval and run_ner.py read any of them."""
    multi_hot: ClassVar[bool | None] = False
    """A list of tags is never a 0 or 1 for each class."""
