"""Chats: lists of {role, content} through the tokenizer's chat template, with a mark on what the assistant says."""

from __future__ import annotations

import copy
from typing import Any

from raytrain_nlp.tasks.base import unicode_text


def check_messages(values: dict[str, Any], column: str, answered: bool = True) -> str | None:
    """Why a field is no chat, or no `answered` one, or None."""
    if column not in values:
        return f"field '{column}' is missing"
    messages = values[column]
    if not isinstance(messages, list) or not messages:
        return f"field '{column}' is {'null' if messages is None else 'empty' if messages == [] else type(messages).__name__}, not a list of messages"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            return f"field '{column}' holds a message without role and content"
    if answered and not any(message["role"] == "assistant" for message in messages):
        return f"field '{column}' has no message of the assistant"
    if not answered and all(message["role"] == "assistant" for message in messages):
        return f"field '{column}' has no message to answer"
    return None


def encode_question(messages: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """Tokens of a chat up to where the assistant answers; an answer that is there already is left out."""
    while messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _tokens(tokenizer, [{**message, "content": unicode_text(message["content"])} for message in messages], add_generation_prompt=True)


def encode_messages(messages: list[dict[str, Any]], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of a chat, and 1 for each token the assistant has to produce: its words and what ends its turn.

    Templates that mark generation themselves (`{% generation %}`) are asked; for others the chat up to each turn of the
    assistant is rendered with and without that turn, and what is new belongs to it.
    """
    messages = [{**copy.copy(message), "content": unicode_text(message["content"])} for message in messages]
    if "generation %}" in tokenizer.chat_template or "generation -%}" in tokenizer.chat_template:
        made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return list(made["input_ids"]), list(made["assistant_masks"])
    ids = _tokens(tokenizer, messages)
    targets = [0] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _common(_tokens(tokenizer, messages[:i], add_generation_prompt=True), ids)
            stop = _common(_tokens(tokenizer, messages[: i + 1]), ids)
            targets[start:stop] = [1] * (stop - start)
    return ids, targets


def _tokens(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    if not messages:  # templates may look at the first message
        return []
    made = tokenizer.apply_chat_template(messages, return_dict=True, **kwargs)
    return list(made["input_ids"])


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
