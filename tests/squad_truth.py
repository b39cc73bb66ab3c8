"""Extractive question answering by transformers alone, in one process: features as run_qa.py makes them, labels by
characters, and answers by all stretches of every window.
"""

from __future__ import annotations

from typing import Any

import torch


def features_of(row: dict[str, Any], tokenizer: Any, max_length: int, stride: int) -> list[dict[str, Any]]:
    """The features of a row; labels are the tokens with a character of the answer, where all of it is there."""
    left = tokenizer.padding_side == "left"
    texts = (row["question"].lstrip(), row["context"])
    made = tokenizer(
        *(texts[::-1] if left else texts),
        truncation="only_first" if left else "only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = []
    for i, ids in enumerate(made["input_ids"]):
        null = ids.index(tokenizer.cls_token_id)
        own = [place for place, part in enumerate(made.sequence_ids(i)) if part == int(not left)]
        offsets = made["offset_mapping"][i]
        found = [null]
        for text, start in zip(row["answers"]["text"][:1], row["answers"]["answer_start"], strict=False):
            if offsets[own[0]][0] <= start and start + len(text) <= offsets[own[-1]][1]:
                found = [p for p in own if offsets[p][0] < start + len(text) and offsets[p][1] > start]
        places = {"start_positions": found[0], "end_positions": found[-1]}
        inputs = {name: made[name][i] for name in ("input_ids", "token_type_ids")}
        features.append({**inputs, **places, "own": own, "offsets": offsets, "null": null})
    return features


def answer_of(row: dict[str, Any], features: list[dict[str, Any]], model: Any, longest: int) -> dict[str, Any]:
    """The best stretch of at most `longest` tokens, each feature predicted alone; `difference`: the least score of no
    answer less its own.
    """
    spans, nothing = [], []
    types = "type_vocab_size" in vars(model.config)
    for feature in features:
        names = ("input_ids", "token_type_ids") if types else ("input_ids",)
        inputs = {name: torch.tensor([feature[name]]) for name in names}
        with torch.no_grad():
            output = model(**inputs)
        starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        nothing.append(starts[feature["null"]] + ends[feature["null"]])
        spans += [
            (starts[i] + ends[j], feature["offsets"][i][0], feature["offsets"][j][1])
            for i in feature["own"]
            for j in feature["own"]
            if i <= j < i + longest
        ]
    score, start, end = max(spans)
    text = row["context"][start:end]
    start += len(text) - len(text.lstrip())
    return {"prediction": text.strip(), "start": start, "difference": min(nothing) - score}
