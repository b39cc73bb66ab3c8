"""`task:` of language models: causal (GPT, Llama, ...), masked (BERT, ...) and permutation (XLNet). Names follow
run_clm.py, run_fim.py, run_mlm.py, run_plm.py and TRL.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raytrain_nlp.config.base import Section

Packing = Literal["concat", "best_fit", "none"]
_NEEDS_RATE = (
    "fim_spm_rate",
    "truncate_or_pad",
    "fim_seed",
    "fim_prefix_token",
    "fim_middle_token",
    "fim_suffix_token",
    "fim_pad_token",
)


class CausalLm(Section):
    """Predict the next token: in plain text, in completions of prompts, or in the assistant's turns of chats."""

    type: Literal["causal-lm"]
    text_column: str | None = None
    """Column with plain text. Default: `text`, where no other column is named."""
    prompt_column: str | None = None
    """Column with prompts; needs `completion_column`."""
    completion_column: str | None = None
    """Column with the completions of the prompts."""
    messages_column: str | None = None
    """Column with chats, each a list of {role, content}, formatted by the tokenizer's chat template."""
    completion_only_loss: bool = True
    """Compute the loss on completions and the assistant's turns only, not on what precedes them."""
    packing: Packing | None = None
    """concat: all text is one stream, cut into blocks (`group_texts` of run_clm.py). best_fit: a block holds several
    whole documents, which do not attend to each other. none: each row is a sequence. Default: concat for plain text,
    otherwise none."""
    block_size: int | None = Field(None, ge=2)
    """Tokens of a block. Default: data.max_length."""
    append_eos: bool | None = None
    """End each document with the tokenizer's end-of-sequence token. Default: true for completions and with best_fit."""
    fim_rate: float = Field(0.0, ge=0, le=1)
    """Share of the documents that are rearranged to fill in the middle (`run_fim.py`, where it is 0.5): prefix, suffix,
    middle, each with its token in front. Plain text only."""
    fim_spm_rate: float = Field(0.5, ge=0, le=1)
    """Share of the rearranged documents in which the suffix comes first."""
    truncate_or_pad: bool = True
    """Cut the suffix of a rearranged document by the three tokens that are put in."""
    fim_seed: int = Field(42, ge=0, lt=2**32)
    """With a document's text it decides whether and where the document is cut: once, in all epochs alike."""
    fim_prefix_token: str = Field("<fim_prefix>", min_length=1)
    """Token before the prefix; added to tokenizer and embeddings where the tokenizer lacks it, as the next three."""
    fim_middle_token: str = Field("<fim_middle>", min_length=1)
    """Token before the middle."""
    fim_suffix_token: str = Field("<fim_suffix>", min_length=1)
    """Token before the suffix."""
    fim_pad_token: str = Field("<fim_pad>", min_length=1)
    """Token that run_fim.py adds for padding, with `truncate_or_pad`; no row has it."""

    @field_validator("packing", mode="before")
    @classmethod
    def _bare_no(cls, value: object) -> object:
        return "none" if value is False else value

    @model_validator(mode="after")
    def _one_kind_of_row(self) -> CausalLm:
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("prompt_column and completion_column belong together || Give both or neither.")
        kinds = [name for name in ("text_column", "completion_column", "messages_column") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other || Keep one kind of row.")
        return self

    @model_validator(mode="after")
    def _infilling(self) -> CausalLm:
        changed = [name for name in _NEEDS_RATE if getattr(self, name) != type(self).model_fields[name].default]
        if changed and not self.fim_rate:
            raise ValueError(f"{changed[0]} is not read without fim_rate || Set task.fim_rate, or remove it.")
        if self.fim_rate and self.kind != "text":
            raise ValueError("fim_rate needs plain text || Name a text_column, or remove it.")
        tokens = [self.fim_prefix_token, self.fim_middle_token, self.fim_suffix_token, self.fim_pad_token]
        if len(set(tokens)) < len(tokens):
            raise ValueError("two of the fim_ tokens are the same || Give each part a token of its own.")
        return self

    @property
    def kind(self) -> Literal["text", "completion", "messages"]:
        """What the rows hold."""
        return "completion" if self.completion_column else "messages" if self.messages_column else "text"


class MaskedLm(Section):
    """Predict masked tokens."""

    type: Literal["masked-lm"]
    text_column: str = "text"
    """Column with plain text."""
    line_by_line: bool = False
    """Each row is a sequence. By default all text is one stream, which is cut into blocks."""
    block_size: int | None = Field(None, ge=8)
    """Tokens of a block (`max_seq_length` of run_mlm.py). Default: data.max_length."""
    mlm_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that are predicted. Of these 80 % are masked, 10 % are replaced by a random token, 10 % stay.
    """
    whole_word_mask: bool = False
    """Mask whole words instead of single tokens."""

    @property
    def packing(self) -> Packing:
        return "none" if self.line_by_line else "concat"


class PermutationLm(Section):
    """Predict spans of tokens in a random order, each token from what comes before it in that order (XLNet)."""

    type: Literal["permutation-lm"]
    text_column: str = "text"
    """Column with plain text."""
    line_by_line: bool = False
    """Each row is a sequence. By default all text is one stream, which is cut into blocks."""
    block_size: int | None = Field(None, ge=8)
    """Tokens of a block (`max_seq_length` of run_plm.py). Default: data.max_length."""
    plm_probability: float = Field(1 / 6, gt=0, le=1)
    """Share of the tokens that are predicted: the length of a span to that of its surroundings, itself included."""
    max_span_length: int = Field(5, ge=1)
    """Tokens of a span at most."""

    @property
    def packing(self) -> Packing:
        return "none" if self.line_by_line else "concat"
