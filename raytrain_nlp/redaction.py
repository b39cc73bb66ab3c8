"""Texts without what is secret in them: passwords and tokens of addresses, and values of the environment whose names
say that they are secret. All that is printed, logged, recorded or sent to a tracker passes here. Standard library only.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_SIGN = r"""[^\s&;"'\\<>()]"""
_NAMES = (
    r"(?:[\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|signature|credential)"
    r"|(?:(?:access|api|auth|bearer|hf|hub|id|refresh|security|session|x-amz-security)[_-]?)?token|pwd|sig|sas)"
)
"""Names of parameters that are secret. A model's `pad_token` is not."""
_NAMED = re.compile(rf"(?<![\w-])({_NAMES}=){_SIGN}+", re.I)
_QUOTED = re.compile(rf"""((?<![\w-]){_NAMES}["']?\s*[:=]\s*)(["'])(?:(?!\2)[^\\])+\2""", re.I)
_KEY = re.compile(_NAMES, re.I)
_HINT = re.compile("pass|pwd|secret|key|sig|sas|cred|token", re.I)
_USER = re.compile(r"""(?<!\bhf)(://)[^\s/@"'\\<>]*(?:@[^\s/@"'\\<>]*)*@""")
"""Before the host of an address; `hf://NAME@REVISION` is none."""
_HEADER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{16,}", re.I)
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[opsru]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{20,}"
    r"|xox[abpr]-[\w-]{10,}|AIza[\w-]{35}|dapi[0-9a-f]{32}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
"""Forms that tokens of well-known services have."""
_VARIABLE = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)(?:_|$)", re.I)
_NO_SECRET = re.compile(r"(?:_PATH|_FILE|_URL|_URI|_DIR|_TIMEOUT|_MODE|_ID)$", re.I)
_SHORTEST = 8
"""Characters of a value of the environment that is masked: shorter ones stand in innocent texts, too."""


def masked(text: str) -> str:
    """A text without its secrets, each of which has become `***`."""
    for secret in _of_environment():
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _USER.sub(rf"\1{MASK}@", text)
    if ("=" in text or ":" in text) and _HINT.search(text):
        text = _QUOTED.sub(rf"\1\g<2>{MASK}\g<2>", _NAMED.sub(rf"\1{MASK}", text))
    return _KNOWN.sub(MASK, _HEADER.sub(rf"\1 {MASK}", text))


def masked_values(value: Any) -> Any:
    """Plain values, in which every text is masked, and what stands under a key that names a secret."""
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(item, str) and item and _KEY.fullmatch(str(key)) else masked_values(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [masked_values(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def masked_address(uri: str) -> str:
    """An address alone, such as a tracker's: its password may have a slash, as in no text."""
    scheme, separator, rest = uri.partition("://")
    _, at, host = rest.rpartition("@")
    return masked(uri if not at or rest.startswith("/") else f"{scheme}{separator}{MASK}@{host}")


class MaskedText(io.TextIOWrapper):
    """A text file into which secrets are not written."""

    def write(self, text: str) -> int:
        super().write(masked(text))
        return len(text)


def _of_environment() -> list[str]:
    """Secret values of the environment, the longest first: one may be a part of another."""
    values = {os.environ.get(name, "") for name in _names_of_environment(len(os.environ))}
    return sorted((one for one in values if len(one) >= _SHORTEST and not one.isdigit()), key=len, reverse=True)


@functools.lru_cache(maxsize=1)
def _names_of_environment(size: int) -> list[str]:
    """Of its secret variables; looked for again where there are more variables or fewer."""
    return [name for name in os.environ if _VARIABLE.search(name) and not _NO_SECRET.search(name)]
