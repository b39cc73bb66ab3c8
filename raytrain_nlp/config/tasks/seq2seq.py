"""`task:` of sequence-to-sequence models: summarization and translation. Keys are named as in run_summarization.py and
run_translation.py.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raytrain_nlp.config.base import Section


class Seq2Seq(Section):
    """The keys that all sequence-to-sequence tasks share."""

    source_prefix: str = ""
    """Text that is put before every source, e.g. `summarize: ` for T5."""
    max_source_length: int | None = Field(None, ge=2)
    """Tokens that a source is truncated to. Default: data.max_length."""
    max_target_length: int = Field(128, ge=2)
    """Tokens that a target is truncated to."""
    val_max_target_length: int | None = Field(None, ge=2)
    """Tokens that an evaluation generates at most, and that its targets are truncated to. Default: max_target_length.
    """
    num_beams: int | None = Field(None, ge=1)
    """Number of beams when an evaluation generates. Default: the model's own."""
    gather_for_generation: bool = True
    """With ZeRO-3: gather the weights once before an evaluation generates, instead of layer by layer for every token.
    Each rank then needs memory for the whole model."""


class Summarization(Seq2Seq):
    """Summarize texts; scored by ROUGE."""

    type: Literal["summarization"]
    text_column: str = "text"
    """Column with the texts."""
    summary_column: str = "summary"
    """Column with the summaries."""


class Translation(Seq2Seq):
    """Translate from one language to another; scored by BLEU and chrF."""

    type: Literal["translation"]
    source_lang: str = Field(min_length=1)
    """Language of the sources: `en`, or a model's own code (`en_XX` of mBART, `eng_Latn` of NLLB)."""
    target_lang: str = Field(min_length=1)
    """Language of the targets."""
    source_column: str | None = None
    """Column with the sources. Default: the key source_lang (up to a `_`) in the column `translation`, or a column of
    that name."""
    target_column: str | None = None
    """Column with the targets. Default: as for the sources, with target_lang."""
    forced_bos_token: str | None = None
    """First token of every generated text. Default: that of target_lang, for models that have language codes."""

    @property
    def source(self) -> str:
        """Name of the source's column, or of its key in `translation`."""
        return self.source_column or self.source_lang.split("_")[0]

    @property
    def target(self) -> str:
        """Name of the target's column, or of its key in `translation`."""
        return self.target_column or self.target_lang.split("_")[0]
