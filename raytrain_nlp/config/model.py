"""`model:`: a pretrained model by name or folder, or one from scratch by its config."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section


class TokenizerTraining(Section):
    """A byte-level BPE tokenizer trained on the training split."""

    vocab_size: int = Field(8192, ge=300, le=1_000_000)
    """Entries of the vocabulary, the 256 bytes and 5 special tokens included."""
    lowercase: bool | None = None
    """Lower-case all text first; default: for encoders (text-classification, masked-lm)."""


class ModelConfig(Section):
    """Which model. `name_or_path` loads weights; `config` builds new ones."""

    name_or_path: str | None = Field(None, min_length=1)
    """Hub name or folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    config: dict[str, Any] | None = None
    """From scratch: `model_type` and that model's own config fields."""
    tokenizer: str | None = Field(None, min_length=1)
    """Hub name or folder, or `train` to train one on the training split. Default: the model's own."""
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    """How `tokenizer: train` trains."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: nothing downloaded is executed."""
    attn_implementation: str | None = None
    """sdpa, eager, flex_attention, flash_attention_2, ...; default: the model's own choice. flash_attention_2 without
    the package flash-attn uses the kernels that torch has.
    """
    quantization: dict[str, Any] | None = None
    """transformers.BitsAndBytesConfig, e.g. {load_in_4bit: true}; the base of a LoRA adapter."""
    dtype: str | None = Field(None, pattern="^(float32|bfloat16|float16)$")
    """Type the weights are loaded or made in; default float32 (mixed precision is `training.bf16`)."""
    chunked_loss: bool = True
    """Compute the loss of a language model in chunks of tokens, without its logits: the same loss in less memory. Left
    out where it cannot be: a head or loss of another kind, label smoothing, `torch_compile`, a loss of the user's own.
    """

    @property
    def model_type(self) -> str | None:
        """Of a model from scratch."""
        return self.config["model_type"] if self.config else None

    @property
    def weights_dtype(self) -> str:
        """Type of the weights, which the config of a model from scratch may name as well."""
        named = self.config or {}
        return str(self.dtype or named.get("dtype") or named.get("torch_dtype") or "float32").removeprefix("torch.")

    @property
    def attention(self) -> str | None:
        """The attention that the job names, which the config of a model from scratch may do as well."""
        return self.attn_implementation or (self.config or {}).get("attn_implementation")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError(
                "needs either name_or_path (pretrained) or config (from scratch) || Give exactly one of them."
            )
        if self.config is not None:
            if "model_type" not in self.config:
                raise ValueError("config has no model_type || Add e.g. `model_type: bert`.")
            if not isinstance(self.config["model_type"], str):
                raise ValueError(
                    f"config.model_type is not text ({self.config['model_type']!r}) || Write e.g. `model_type: bert`."
                )
            if self.tokenizer is None:
                raise ValueError(
                    "a model from scratch needs a tokenizer || Set model.tokenizer to a name, a folder or `train`."
                )
        return self
