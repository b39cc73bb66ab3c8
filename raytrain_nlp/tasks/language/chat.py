"""Tokenizes chats, lists of {role, content}, by the chat template, with a mask of the assistant's tokens."""

from __future__ import annotations

import copy
import re
from typing import Any

from raytrain_nlp.tasks.base import unicode_text

_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def check_messages(values: dict[str, Any], column: str, answered: bool = True) -> str | None:
    """Why a field is no chat, or no `answered` one, or None."""
    if column not in values:
        return f"field '{column}' is missing"
    messages = values[column]
    if not isinstance(messages, list) or not messages:
        return f"field '{column}' is {'null' if messages is None else 'empty' if messages == [] else type(messages).__name__}, not a list of messages"  # noqa: E501
    if reason := next(
        (
            f"message {i} of field '{column}' {why}"
            for i, message in enumerate(messages, 1)
            if (why := _no_message(message))
        ),
        None,
    ):
        return reason
    if answered and not any(message["role"] == "assistant" for message in messages):
        return f"field '{column}' has no message of the assistant"
    if not answered and all(message["role"] == "assistant" for message in messages):
        return f"field '{column}' has no message to answer"
    return None


def _no_message(message: Any) -> str | None:
    """Why a value is no {role, content} of two texts, or None."""
    if not isinstance(message, dict):
        return f"is {type(message).__name__}, not a mapping of role and content"
    for key in ("role", "content"):
        if key not in message:
            return f"has no {key} (keys: {', '.join(map(str, message))})"
        if not isinstance(message[key], str):
            return f"has a {key} that is {'null' if message[key] is None else type(message[key]).__name__}, not text"
    return None


def encode_question(messages: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """Tokens of a chat up to where the assistant answers; an answer that is there already is left out."""
    while messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return encode_chat(
        tokenizer,
        [{**message, "content": unicode_text(message["content"])} for message in messages],
        add_generation_prompt=True,
    )


def encode_messages(
    messages: list[dict[str, Any]], tokenizer: Any, answers_only: bool = True
) -> list[tuple[list[int], list[int]]]:
    """Tokenize a chat into one or more rows: token ids, and a mask with 1 for each token that the assistant produces,
    the end of its turn included.

    A template that marks generation itself (`{% generation %}`) provides the mask of one row. For others the chat up to
    each assistant turn is rendered with and without that turn, and the difference belongs to the turn. Some templates
    render a turn differently once more turns follow (those of reasoning models drop the reasoning, some move the system
    prompt). Such a turn becomes a row of its own, which ends with it, rendered as the last turn. Raises what the
    template raises.

    Args:
        answers_only: whether the mask covers the assistant's tokens only; else all tokens of the chat, as one row.
    """
    messages = [{**copy.copy(message), "content": unicode_text(message["content"])} for message in messages]
    if _MARKED.search(_template_of(tokenizer)):
        made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return [(list(made["input_ids"]), list(made["assistant_masks"]))]
    ids = encode_chat(tokenizer, messages)
    if not answers_only:
        return [(ids, [1] * len(ids))]
    whole, rows, tail = (ids, [0] * len(ids)), [], None
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, turn = (
            encode_chat(tokenizer, messages[:i], add_generation_prompt=True),
            encode_chat(tokenizer, messages[: i + 1]),
        )
        stop = _common(turn, ids)
        if stop < len(turn) and tail is None:
            tail = _tail(tokenizer)
        if stop >= len(turn) - (tail or 0):
            start = _common(prompt, ids)
            whole[1][start:stop] = [1] * (stop - start)
        else:
            start = _common(prompt, turn)
            rows.append((turn, [0] * start + [1] * (len(turn) - start)))
    return [*rows, whole] if any(whole[1]) else rows or [whole]


def refusal(error: Exception) -> str:
    """Why a template takes no chat, of what it raised."""
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"the chat template refuses it ({reason})"


def _template_of(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return (
        template
        if isinstance(template, str)
        else "".join(map(str, template.values()))
        if isinstance(template, dict)
        else ""
    )


def _tail(tokenizer: Any) -> int:
    """The number of tokens that the template adds after the content of the last turn. They may be missing there once
    another turn follows.
    """
    try:
        one, other = (
            encode_chat(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": word}])[::-1]
            for word in ("b", "c")
        )
    except Exception:  # noqa: BLE001 - a template that takes no chat as short as this
        return 1
    return _common(one, other)


def encode_chat(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    """Tokens of a chat by the tokenizer's template; of no message none. Raises what the template raises."""
    if not messages:  # templates may look at the first message
        return []
    made = tokenizer.apply_chat_template(messages, return_dict=True, **kwargs)
    return list(made["input_ids"])


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def spread_note(count: int, rows: int) -> str:
    """What to tell where `count` chats have become several rows, `rows` in all."""
    return (
        f"the chat template renders earlier turns of the assistant otherwise than the last one: {count:,} chats are a "
        f"row for each such turn, {rows:,} rows in all."
    )
