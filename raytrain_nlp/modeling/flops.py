"""Floating-point operations of a training step, as model FLOPs utilization (MFU) counts them.

By appendix B of the PaLM paper (Chowdhery et al., 2022), per token:

    6 N  +  12 L H Q T

N: parameters in matrix products, all but embedding tables that are only looked up; L layers of H heads of size Q; T
tokens of the row. A forward costs 2 N, its backward pass 4 N: 2 N for the gradients of activations and 2 N for those of
weights. The latter are not computed for frozen weights, so that a LoRA's base costs 4 N. Not counted, as there:
recomputed activations (gradient checkpointing), that causal attention needs half of its products, heads that see one
token a row.

Encoder-decoders: the encoder's parameters see the source tokens, all others the target's (cross-attention's keys and
values, which see the source, are counted with the target); attention within source and target, and of each to the
source. Of experts, each token sees `num_experts_per_tok`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one training step of a model, by what it is fed."""

    source: float
    """Per token of `input_ids`: those of products with weights."""
    target: float = 0.0
    """Per token of the labels, of an encoder-decoder only."""
    attention: float = 0.0
    """Per pair of tokens of a row that attend to each other: 12 L H Q."""
    target_attention: float = 0.0
    """The same of the decoder of an encoder-decoder."""

    def of_step(self, rows: float, tokens: float, targets: float = 0.0, pairs: float | None = None) -> float:
        """FLOPs of one forward and backward pass.

        Args:
            rows: how many there are; all are taken to be of the mean length.
            tokens: of `input_ids`, without padding.
            targets: tokens of the labels, of an encoder-decoder.
            pairs: of tokens of `input_ids` in the same document, where a row has several; each with itself counts, too.
        """
        length, target_length = tokens / max(rows, 1), targets / max(rows, 1)
        pairs, target_pairs = tokens * length if pairs is None else pairs, targets * (target_length + length)
        return (
            self.source * tokens + self.target * targets + self.attention * pairs + self.target_attention * target_pairs
        )


def count_flops(model: Any) -> ModelFlops | None:
    """Of a model of transformers, with or without a PEFT adapter, whole or sharded by ZeRO-3, on any device. None where
    its config does not say how many layers and heads it has.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = plain.config
    attention = _attention(config, "num_hidden_layers", "num_attention_heads")
    if attention is None:
        return None
    used = _expert_share(config)
    both = _costs(plain, plain, used)
    if not getattr(config, "is_encoder_decoder", False):
        return ModelFlops(source=both, attention=attention)
    source = _costs(plain.get_encoder(), plain, used)
    decoder = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    layers = next(name for name in decoder if getattr(config, name, None))
    heads = "decoder_attention_heads" if getattr(config, "decoder_attention_heads", None) else "num_attention_heads"
    return ModelFlops(source, both - source, attention, _attention(config, layers, heads) or attention)


def _attention(config: Any, layers: str, heads: str) -> float | None:
    count, width = getattr(config, layers, None), getattr(config, heads, None)
    if not isinstance(count, int) or not isinstance(width, int) or not width:
        return None
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // width
    return 12.0 * count * width * size


def _expert_share(config: Any) -> float:
    total = next((getattr(config, name) for name in _EXPERTS if getattr(config, name, None)), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / total if total and used else 1.0


def _costs(part: Any, whole: Any, expert_share: float) -> float:
    """FLOPs per token of products with the weights in `part`, each weight once."""
    from torch import nn

    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    tied = id(getattr(head, "weight", None))
    looked_up = {
        id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding) and id(module.weight) != tied
    }
    total = 0.0
    for name, parameter in part.named_parameters():
        if id(parameter) not in looked_up and (part is whole or id(parameter) != tied):
            share = expert_share if ".experts." in f".{name}." else 1.0
            total += share * _elements(parameter) * (6 if parameter.requires_grad else 4)
    return total


def _elements(parameter: Any) -> int:
    """Of the whole weight, where this rank has a shard of it or a packed form."""
    if hasattr(parameter, "ds_numel"):
        return int(parameter.ds_numel)
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else int(parameter.numel())
