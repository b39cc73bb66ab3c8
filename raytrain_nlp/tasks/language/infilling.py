"""Filling in the middle (Bavarian et al. 2022): documents of a causal language model are rearranged, so that it learns
to write what stands between a prefix and a suffix. Done where rows are tokenized, as in run_fim.py: the lengths of
documents change by it, which blocks and plan are made from, and a document may lie in several blocks.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from raytrain_nlp.config.tasks.language import CausalLm

MARKS = 3
"""Tokens that a rearranged document has more, before its suffix is cut: one before each part."""


def mark_tokens(config: CausalLm) -> tuple[str, ...]:
    """The tokens that the tokenizer must know: of prefix, middle and suffix, and run_fim.py's padding."""
    if not config.fim_rate:
        return ()
    padding = (config.fim_pad_token,) if config.truncate_or_pad else ()
    return (config.fim_prefix_token, config.fim_middle_token, config.fim_suffix_token, *padding)


class Infilling:
    """Rearranges documents as the job's `task:` section says.

    Args:
        tokenizer: one that knows the tokens of `mark_tokens`.
    """

    def __init__(self, config: CausalLm, tokenizer: Any):
        self._config = config
        self._prefix, self._middle, self._suffix = (
            tokenizer.convert_tokens_to_ids(token) for token in mark_tokens(config)[:MARKS]
        )

    def apply(self, ids: list[int], text: str) -> list[int]:
        """The tokens of one document, rearranged or as they are.

        Chance depends on `task.fim_seed` and the document's text alone: it is the same wherever the document stands,
        in any split of a file and on any worker. A document without tokens stays as it is.
        """
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        random = np.random.default_rng([self._config.fim_seed, int.from_bytes(digest, "little")])
        if not ids or random.random() >= self._config.fim_rate:
            return ids
        first, last = sorted(random.integers(0, len(ids) + 1, size=2).tolist())
        return self.arrange(ids, first, last, suffix_first=random.random() < self._config.fim_spm_rate)

    def arrange(self, ids: list[int], first: int, last: int, suffix_first: bool) -> list[int]:
        """The document whose middle is `ids[first:last]`, in the order prefix, suffix, middle (PSM); with
        `suffix_first` suffix, prefix, middle (SPM), where the tokens of prefix and suffix both begin the document.
        """
        prefix, middle, suffix = ids[:first], ids[first:last], ids[last:]
        if self._config.truncate_or_pad:
            suffix = suffix[: max(len(suffix) - MARKS, 0)]
        if suffix_first:
            return [self._prefix, self._suffix, *suffix, self._middle, *prefix, *middle]
        return [self._prefix, *prefix, self._suffix, *suffix, self._middle, *middle]
