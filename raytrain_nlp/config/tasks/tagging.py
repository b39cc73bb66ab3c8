"""`task:` of token classification: a tag for each word. Keys are named as in run_ner.py."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from raytrain_nlp.config.base import Section
from raytrain_nlp.config.tasks.label_names import NUMBERS_TOO, LabelNames


class TokenClassification(Section):
    """Assign a tag to each word of a sentence: named entities, parts of speech."""

    type: Literal["token-classification"]
    text_column: str = "tokens"
    """Column with the words of a sentence, as a list."""
    label_column: str = "ner_tags"
    """Column with a list of tags, one for each word: names, or indices of `label_names`."""
    label_names: LabelNames | None = Field(None, json_schema_extra=NUMBERS_TOO)
    """All tags in the order of their ids. Default: those that a `datasets` file declares; otherwise the sorted tags of
    the training split, in the order of the model's head where it has the same names."""
    label_all_tokens: bool = False
    """Train and score every token of a word; tokens after the first then have `I-` instead of `B-`. Default: only the
    first token of each word."""
    return_entity_level_metrics: bool = False
    """Report figures of each type of entity too, as `PER_f1`, and those of all types as `overall_f1`."""
    tag_scheme: Literal["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"] | None = None
    """Scheme by which tags are read as entities, strictly. Default: leniently, as conlleval and run_ner.py read tags of
    any scheme."""
    multi_hot: ClassVar[bool | None] = False
    """A list of labels holds the tags of the words, never a 0 or 1 for each class."""
