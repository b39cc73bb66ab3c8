"""Rows of preference data: which columns they have, whether they are texts or chats, where the prompt ends.

Texts and chats become tokens as in TRL: prompt and completion are tokenized together, the completion begins where that
differs from the prompt alone, and a text ends with the tokenizer's end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raytrain_nlp.tasks.base import check_text, unicode_text
from raytrain_nlp.tasks.language import chat

Text = str | list[dict[str, Any]]
"""A text, or a chat."""


def has_prompt(values: dict[str, Any], column: str) -> bool:
    """Has a row a prompt of its own?"""
    return values.get(column) is not None


def check_completion(values: dict[str, Any], column: str, chats: bool) -> str | None:
    """Why a field is no completion, or None.

    Args:
        chats: must it be a list of messages? Else a text.
    """
    if not chats and isinstance(values.get(column), list):
        return f"field '{column}' is a list of messages, where the row's other fields are texts"
    return chat.check_messages(values, column) if chats else check_text(values, column)


def check_prompt(values: dict[str, Any], column: str) -> str | None:
    """Why a field is no prompt, or None."""
    is_chat = isinstance(values.get(column), list)
    return chat.check_messages(values, column, answered=False) if is_chat else check_text(values, column)


def check_pair(values: dict[str, Any], prompt: str, chosen: str, rejected: str) -> str | None:
    """Why a row is no pair of completions, or None."""
    first = prompt if has_prompt(values, prompt) else chosen
    chats = isinstance(values.get(first), list)
    reasons = [check_prompt(values, prompt)] if first == prompt else []
    reasons += [check_completion(values, column, chats) for column in (chosen, rejected)]
    return next(filter(None, reasons), None)


def split_prompt(chosen: Text, rejected: Text) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of two texts or chats that begin alike. A space before the difference belongs to the
    completions.
    """
    place = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if place is None:
        place = min(len(chosen), len(rejected))
    elif place and chosen[place - 1] == " ":
        place -= 1
    return chosen[:place], chosen[place:], rejected[place:]


def read_pair(values: dict[str, Any], prompt: str, chosen: str, rejected: str) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a good row."""
    if has_prompt(values, prompt):
        return values[prompt], values[chosen], values[rejected]
    return split_prompt(values[chosen], values[rejected])


def texts_in(value: Any) -> Iterator[str]:
    """The texts in a text or a chat."""
    if isinstance(value, list):
        yield from (unicode_text(message["content"]) for message in value)
    elif isinstance(value, str):
        yield unicode_text(value)


def scored_pair(chosen: float, rejected: float) -> dict[str, Any]:
    """What an evaluation found for a pair: the rewards, and which completion has more."""
    preferred = "chosen" if chosen > rejected else "rejected"
    rewards = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
    return {"label": "chosen", "prediction": preferred, **rewards}


def encode_prompt(prompt: Text, tokenizer: Any) -> list[int]:
    """Tokens of a prompt, up to where the assistant answers."""
    if isinstance(prompt, list):
        return chat.encode_chat(tokenizer, _clean(prompt), add_generation_prompt=True)
    return list(tokenizer(unicode_text(prompt), return_attention_mask=False)["input_ids"])


def encode_whole(prompt: Text, completion: Text, tokenizer: Any) -> list[int]:
    """Tokens of a prompt with a completion."""
    if isinstance(completion, list):
        return chat.encode_chat(tokenizer, [*_clean(prompt), *_clean(completion)])
    text, end = unicode_text(prompt + completion), tokenizer.eos_token  # type: ignore[operator]
    return list(
        tokenizer(text if text.endswith(end) else text + end, return_attention_mask=False, verbose=False)["input_ids"]
    )


def check_tokenizer(tokenizer: Any) -> str | None:
    """What a tokenizer lacks, or None. Whether rows are chats, which need a template, is known only later."""
    return "has no end-of-sequence token, with which completions end" if tokenizer.eos_token is None else None


def _clean(messages: Any) -> list[dict[str, Any]]:
    return [{**message, "content": unicode_text(message["content"])} for message in messages]
