"""Prediction with a language model: what follows a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from raytrain_nlp.tasks.base import CollateContext, Columns, Lengths, TaskDefaults


class Continues(TaskDefaults):
    """The parts of a task whose predictions are the continuations of prompts."""

    auto_model = "AutoModelForCausalLM"
    auto_mapping = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    peft_type = "CAUSAL_LM"
    tokenizer_kind = "decoder"
    writes_text = True

    def special_tokens(self, tokenizer: Any) -> dict[str, Any]:
        return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}

    def forward_kwargs(self) -> dict[str, Any]:
        return {
            "use_cache": False
        }  # a cache costs memory, and hides the borders of packed documents from the attention mask

    def collate_inputs(self, columns: Columns, context: CollateContext) -> dict[str, np.ndarray]:
        return super().collate_inputs(columns, replace(context, padding_side="left"))  # generation goes on at the right

    def outputs(self, model: Any, inputs: dict[str, Any], tokenizer: Any, generation: dict[str, Any]) -> dict[str, Any]:
        generated = model.generate(**inputs, **{"pad_token_id": tokenizer.pad_token_id, **generation})
        return {"generated": generated[:, inputs["input_ids"].shape[1] :]}

    def predictions(
        self, outputs: dict[str, np.ndarray], labels: list[str], tokenizer: Any
    ) -> Iterator[dict[str, Any]]:
        yield from (
            {"prediction": text} for text in tokenizer.batch_decode(outputs["generated"], skip_special_tokens=True)
        )


def encode_text_prompts(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of texts that go on: without the end-of-sequence token that some tokenizers put at the end."""
    ids, eos = tokenizer(texts, return_attention_mask=False)["input_ids"], tokenizer.eos_token_id
    return [row[:-1] if row and eos is not None and row[-1] == eos else row for row in ids]


def last_tokens(rows: list[list[int]], lengths: Lengths) -> Columns:
    """The last tokens of prompts, where there are too many: the answer follows them."""
    return {"input_ids": [row[-lengths.source :] if lengths.source else row for row in rows]}
