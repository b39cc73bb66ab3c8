"""Tokens a row would have had, had it not been cut: what preparing counts and tells."""

from __future__ import annotations

from typing import Any

FULL, FULL_TARGET, KEPT = "full_length", "full_target_length", "kept_length"
"""Columns beside the tokens, which preparing takes out again: tokens of a row, and of its target, before cutting; and
of a row afterwards, where it is several sequences, each cut by itself: `FULL` and `KEPT` are then of the longest one.
"""


def full_lengths(
    tokenizer: Any, encoded: Any, texts: tuple[list[Any], ...], max_length: int | None, **kwargs: Any
) -> list[int]:
    """Tokens of each row before it was cut to `max_length`.

    Args:
        encoded: what the tokenizer made of `texts`, one list a segment of texts or lists of words, with truncation.
        kwargs: other arguments it was given, e.g. `add_special_tokens`.
    """
    full = [len(row) for row in encoded["input_ids"]]
    if max_length is None:
        return full
    unknown = []
    for i in (i for i, length in enumerate(full) if length >= max_length):
        if not tokenizer.is_fast:
            unknown.append(i)
        elif rest := encoded.encodings[i].overflowing:
            if len(texts) > 1:  # the rests of both segments are combined with each other
                unknown.append(i)
            else:
                full[i] += sum(len(part) - sum(part.special_tokens_mask) for part in rest)
    if unknown:
        again = tokenizer(
            *([text[i] for i in unknown] for text in texts), return_attention_mask=False, verbose=False, **kwargs
        )["input_ids"]
        for i, row in zip(unknown, again, strict=True):
            full[i] = len(row)
    return full
