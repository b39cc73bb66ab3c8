"""`task:` of sequence-to-sequence models: summarization and translation. Names follow run_summarization.py and
run_translation.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raytrain_nlp.config.base import Section


class Seq2Seq(Section):
    """What both tasks share."""

    source_prefix: str = ""
    """Put before every source, e.g. `summarize: ` for T5."""
    max_source_length: int | None = Field(None, ge=2)
    """Tokens a source is truncated to; default data.max_length."""
    max_target_length: int = Field(128, ge=2)
    """Tokens a target is truncated to."""
    val_max_target_length: int | None = Field(None, ge=2)
    """Tokens generated in evaluation, and compared with; default max_target_length."""
    num_beams: int | None = Field(None, ge=1)
    """Beams of the generation in evaluation; default: the model's own."""
    gather_for_generation: bool = True
    """ZeRO-3: gather the weights once for an evaluation that generates, instead of layer by layer for every token.
    Needs memory for the whole model on each rank meanwhile."""


class Summarization(Seq2Seq):
    """Texts to summaries, scored by ROUGE."""

    type: Literal["summarization"]
    text_column: str = "text"
    """Column of the texts."""
    summary_column: str = "summary"
    """Column of the summaries."""


class Translation(Seq2Seq):
    """One language to another, scored by BLEU and chrF."""

    type: Literal["translation"]
    source_lang: str = Field(min_length=1)
    """Language of the sources: `en`, or a model's own code (`en_XX` of mBART, `eng_Latn` of NLLB)."""
    target_lang: str = Field(min_length=1)
    """Language of the targets."""
    source_column: str | None = None
    """Column of the sources. Default: source_lang (up to a `_`) inside `translation`, or a column of that name."""
    target_column: str | None = None
    """Column of the targets."""
    forced_bos_token: str | None = None
    """First token of every generated text; default: target_lang's, for models that have language codes."""

    @property
    def source(self) -> str:
        """Key of the source text."""
        return self.source_column or self.source_lang.split("_")[0]

    @property
    def target(self) -> str:
        """Key of the target text."""
        return self.target_column or self.target_lang.split("_")[0]
