"""`model:`: a pretrained model by name or folder, or a new one by its configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from raytrain_nlp.config.base import Section


class TokenizerTraining(Section):
    """A byte-level BPE tokenizer trained on the training split."""

    vocab_size: int = Field(8192, ge=300, le=1_000_000)
    """Entries of the vocabulary, including the 256 bytes and the special tokens."""
    lowercase: bool | None = None
    """Convert all text to lower case first. Default: true for encoders, false for models that generate text."""


class ModelConfig(Section):
    """The model: `name_or_path` loads pretrained weights, `config` initializes new ones."""

    name_or_path: str | None = Field(None, min_length=1)
    """Name on the Hugging Face hub, or a folder."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    config: dict[str, Any] | None = None
    """For a model from scratch: `model_type`, and fields of that model's configuration in transformers."""
    tokenizer: str | None = Field(None, min_length=1)
    """Name on the hub, a folder, or `train` to train one on the training split. Default: the model's own."""
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    """Settings of `tokenizer: train`."""
    trust_remote_code: bool = False
    """Execute Python code that comes with the model. By default no downloaded code is executed."""
    attn_implementation: str | None = None
    """sdpa, eager, flex_attention, flash_attention_2, ...; default: the model's own choice. Where the package
    flash-attn is not installed, flash_attention_2 uses the kernels in torch."""
    quantization: dict[str, Any] | None = None
    """Fields of transformers.BitsAndBytesConfig, e.g. {load_in_4bit: true}, for the base model of a LoRA adapter."""
    dtype: str | None = Field(None, pattern="^(float32|bfloat16|float16)$")
    """Data type in which the weights are loaded or initialized; default float32. Mixed precision is `training.bf16`."""
    chunked_loss: bool = True
    """Compute the loss of a language model in chunks of tokens, so that the logits are never held in memory as a whole;
    the loss is the same. Has no effect where something else needs the logits: another kind of head or loss, label
    smoothing, `torch_compile`, a loss function of your own."""

    @property
    def model_type(self) -> str | None:
        """`model_type` of a model from scratch; None of a pretrained one."""
        return self.config["model_type"] if self.config else None

    @property
    def weights_dtype(self) -> str:
        """Data type of the weights. The configuration of a model from scratch may name it too."""
        named = self.config or {}
        return str(self.dtype or named.get("dtype") or named.get("torch_dtype") or "float32").removeprefix("torch.")

    @property
    def attention(self) -> str | None:
        """The attention implementation that the job names, if any. The configuration of a model from scratch may name
        it too.
        """
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
