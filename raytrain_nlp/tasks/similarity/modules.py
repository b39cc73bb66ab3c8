"""The files that make a folder of a transformers model one of sentence-transformers, of any of its releases."""

from __future__ import annotations

from typing import Any

from raytrain_nlp.config.tasks.similarity import SentenceSimilarity

_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def module_files(config: SentenceSimilarity, dimensions: int, max_length: int) -> dict[str, Any]:
    """Name of each file -> its content, as JSON values.

    Args:
        dimensions: of a vector.
        max_length: tokens a text is cut to.
    """
    steps = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    steps += [("2", "2_Normalize", "Normalize")] if config.normalize else []
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    return {
        "modules.json": [
            {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for name, path, kind in steps
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": dimensions,
            **{key: mode == config.pooling for mode, key in _MODES.items()},
        },
        **({"2_Normalize/config.json": {}} if config.normalize else {}),
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": config.similarity,
        },
    }
