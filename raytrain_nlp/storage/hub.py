"""Is the Hugging Face hub there? Its clients try again for up to a minute; one look tells, and what it tells holds for
all of them.
"""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit

from raytrain_nlp.compat.huggingface_hub import apply_offline
from raytrain_nlp.errors import Problem

_SECONDS = 3
_TRIES = 2
_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json")
"""Of which a folder of the hub's cache has at least one."""


def check_hub_names(names: dict[str, tuple[str, str | None]]) -> list[Problem]:
    """Names of the hub that cannot be had, as `key of the job -> (name, revision)`. Datasets are `hf://...`.

    Where the hub cannot be reached its clients are told so: they then read what is on this machine, at once.
    """
    if not names or (reason := why_unreachable()) is None:
        return []
    apply_offline()
    return [
        Problem(
            where,
            f"the hub cannot be asked ({reason}), and nothing of this name is on this machine ({name})",
            "Name a folder or files, or mend the network.",
        )
        for where, (name, revision) in names.items()
        if not _is_cached(name, revision)
    ]


@functools.cache
def why_unreachable() -> str | None:
    """Why nobody can connect to the hub (`HF_ENDPOINT`), or None. Behind a proxy only the clients themselves can
    tell.
    """
    if next(
        (
            value
            for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            if (value := os.environ.get(key, "")).upper() in ("1", "ON", "YES", "TRUE")
        ),
        None,
    ):
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    place = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    reason = None
    for _ in range(_TRIES):
        try:
            socket.create_connection(
                (place.hostname or "", place.port or (80 if place.scheme == "http" else 443)), timeout=_SECONDS / _TRIES
            ).close()
        except OSError as error:
            reason = f"{place.hostname}: {error.strerror or error}"
        else:
            return None
    return reason


def _is_cached(name: str, revision: str | None) -> bool:
    """Is anything of a model in the hub's cache? Datasets are read where they are, and are not kept."""
    if name.startswith("hf://"):
        return False
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _FILES)
    except ValueError:  # no name of the hub at all: told by who looks for it
        return True
