"""The config of a model of the same family that is small enough to be tried: everything but its sizes stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

VOCABULARY = 64
_SIZES = {
    64: "hidden_size n_embd d_model dim word_embed_proj_dim embedding_size attention_hidden_size mamba_d_ssm "
    "intermediate_size intermediate_size_mlp ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim "
    "moe_intermediate_size shared_intermediate_size shared_expert_intermediate_size dense_intermediate_size "
    "moe_shared_expert_intermediate_size expert_ffn_hidden_size max_position_embeddings n_positions n_ctx "
    "vocab_size vocab_size_per_layer_input",
    4: "num_attention_heads n_head num_heads n_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts "
    "sliding_window window_size attention_window_size attention_chunk_size local_attention",
    2: "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k topk_group n_group",
    16: "head_dim global_head_dim swa_head_dim attention_head_dim kv_channels rotary_dim qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim",
    32: "q_lora_rank kv_lora_rank qk_head_dim",
}
"""A size, and the fields of configs that it is the most of. Windows are shorter than the documents that are tried."""
_MOST = {name: size for size, names in _SIZES.items() for name in names.split()}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers")
_HEADS, _KEY_HEADS = "num_attention_heads", "num_key_value_heads"


def narrow_config(config: Any) -> Any:
    """A copy with few layers (one of each kind at least), small matrices and a small vocabulary."""
    config = shallow_config(config)
    for part in _parts(config):
        values = dict(vars(part))
        for name, value in values.items():
            if name in _MOST and _is_number(value):
                setattr(part, name, min(value, _MOST[name]))
            elif name.endswith("_token_id") and _is_number(value) and value >= VOCABULARY:
                setattr(part, name, 1)
            elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
                setattr(part, name, _rope(value))
        if _is_number(values.get(_KEY_HEADS)) and _is_number(values.get(_HEADS)):
            heads = getattr(part, _HEADS)
            equal, one = values[_KEY_HEADS] == values[_HEADS], values[_KEY_HEADS] == 1
            setattr(part, _KEY_HEADS, heads if equal else 1 if one else min(2, heads))
    return config


def shallow_config(config: Any) -> Any:
    """A copy with few layers, one of each kind at least."""
    config = copy.deepcopy(config)
    for part in _parts(config):
        values = dict(vars(part))
        layers = next((values[name] for name in _LAYERS if _is_number(values.get(name))), 0)
        listed = {name: list(value) for name, value in values.items() if _is_list(value) and len(value) == layers > 0}
        kinds = [value for value in listed.values() if all(isinstance(kind, str) for kind in value)]
        kept = max([2, *(1 + max(value.index(kind) for kind in set(value)) for value in kinds)])
        for name, value in listed.items():
            setattr(part, name, value[:kept])
        for name in _LAYERS:
            if _is_number(values.get(name)):
                setattr(part, name, min(values[name], kept))
    return config


def _parts(config: Any) -> Iterator[Any]:
    """The config and those within it, as of a model of text and pictures."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _parts(value)


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions for heads of 16; what a list scales by, one number for each of their dimensions, is left out."""
    if any(isinstance(value, dict) for value in values.values()):  # one for each kind of layer
        return {name: _rope(value) if isinstance(value, dict) else value for name, value in values.items()}
    kept = {name: value for name, value in values.items() if not _is_list(value)}
    if "mrope_section" in values:
        kept["mrope_section"] = [4, 2, 2]
    if len(kept) < len(values) and "rope_type" in kept:
        kept["rope_type"] = "default"
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
